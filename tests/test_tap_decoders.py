"""The tap reads the residual stream in every way that hosts run their blocks, with gradient.

Two ways of running blocks: `Called` is a Hugging Face decoder run as such; `Interleaved` is the loop of pi0
and SmolVLA, which never calls a block but reaches into it to let an action expert attend to the language
model's tokens.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from spatial_forcing.grid import Layout
from spatial_forcing.tap import Host, Tap

MODELS = ("llama", "gemma", "qwen2")
LAYOUT, VISUAL = Layout(views=1, rows=2, cols=2), slice(1, 5)


class Called(nn.Module):
    """A decoder with an action head; `reentrant` is its kind of activation checkpointing, None for none."""

    def __init__(self, decoder, kind: str, layers: int, reentrant: bool | None):
        super().__init__()
        self.vlm, self.head = decoder(kind, layers=layers), nn.Linear(32, 3)
        if reentrant is not None:
            self.vlm.gradient_checkpointing_enable({"use_reentrant": reentrant})
        self.train()

    def forward(self, words_BLD: Tensor, actions_BSE: Tensor) -> Tensor:
        return self.head(self.vlm(inputs_embeds=words_BLD, use_cache=False).last_hidden_state)

    def streams(self, words_BLD: Tensor, actions_BSE: Tensor) -> tuple[list[Tensor], Tensor]:
        """The residual stream after each block, read without hooks, and the output."""
        norm, self.vlm.norm = self.vlm.norm, nn.Identity()  # without it the last state is the stream itself
        hidden = self.vlm(inputs_embeds=words_BLD, use_cache=False, output_hidden_states=True).hidden_states
        self.vlm.norm = norm
        return list(hidden), self.head(self.vlm.norm(hidden[-1]))


class Interleaved(nn.Module):
    """Two decoders under one causal attention: the expert sees all tokens, the language model its own."""

    def __init__(self, decoder, kind: str, layers: int, reentrant: bool | None):
        super().__init__()
        self.vlm, self.expert = decoder(kind, layers=layers), decoder(kind, width=16, layers=layers)
        self.head, self.reentrant = nn.Linear(16, 3), reentrant

    def block(self, k: int, words_BLD: Tensor, actions_BSE: Tensor, cos: Tensor, sin: Tensor):
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        layers = (self.vlm.layers[k], self.expert.layers[k])
        normed = [layer.input_layernorm(x) for layer, x in zip(layers, (words_BLD, actions_BSE), strict=True)]

        def heads(name: str) -> Tensor:
            projected = [getattr(layer.self_attn, name)(x) for layer, x in zip(layers, normed, strict=True)]
            return torch.cat(projected, dim=1).unflatten(-1, (-1, 8)).transpose(1, 2)

        query, key = apply_rotary_pos_emb(heads("q_proj"), heads("k_proj"), cos, sin)
        attended = nn.functional.scaled_dot_product_attention(
            query, key, heads("v_proj"), is_causal=True, enable_gqa=True
        )
        parts = attended.transpose(1, 2).flatten(2).split([words_BLD.shape[1], actions_BSE.shape[1]], dim=1)
        out = []
        for layer, x, part in zip(layers, (words_BLD, actions_BSE), parts, strict=True):
            x = x + layer.self_attn.o_proj(part)
            out.append(x + layer.mlp(layer.post_attention_layernorm(x)))
        return tuple(out)

    def run(
        self, words_BLD: Tensor, actions_BSE: Tensor, reentrant: bool | None
    ) -> tuple[list[Tensor], Tensor]:
        position_1L = torch.arange(words_BLD.shape[1] + actions_BSE.shape[1])[None]
        cos_sin = self.vlm.rotary_emb(words_BLD, position_1L)
        streams = [words_BLD]
        for k in range(len(self.vlm.layers)):
            if reentrant is None:
                words_BLD, actions_BSE = self.block(k, words_BLD, actions_BSE, *cos_sin)
            else:
                words_BLD, actions_BSE = checkpoint(
                    self.block, k, words_BLD, actions_BSE, *cos_sin, use_reentrant=reentrant
                )
            streams.append(words_BLD)
        # pi0 and SmolVLA compute the language model's last norm too, and throw it away.
        self.vlm.norm(words_BLD)
        return streams, self.head(self.expert.norm(actions_BSE))

    def forward(self, words_BLD: Tensor, actions_BSE: Tensor) -> Tensor:
        return self.run(words_BLD, actions_BSE, self.reentrant)[1]

    def streams(self, words_BLD: Tensor, actions_BSE: Tensor) -> tuple[list[Tensor], Tensor]:
        return self.run(words_BLD, actions_BSE, None)


def host(decoder: nn.Module, **changes) -> Host:
    record = {
        "name": "tiny",
        "blocks": decoder.layers,
        "final_norm": decoder.norm,
        "width": 32,
        "layout": LAYOUT,
        "visual": lambda hidden_BLD: hidden_BLD[:, VISUAL],
    }
    return Host(**record | changes)


def embeddings() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 6, 32, requires_grad=True), torch.randn(2, 3, 16, requires_grad=True)


def gradients(loss: Tensor, policy: nn.Module, *inputs: Tensor) -> dict[str, Tensor]:
    """By name, of everything that got one; by `backward`, as reentrant checkpointing asks."""
    leaves = dict(policy.named_parameters()) | {f"input {i}": x for i, x in enumerate(inputs)}
    for leaf in leaves.values():
        leaf.grad = None
    loss.backward()
    return {name: leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}


def loss_of(out: Tensor, *visual: Tensor) -> Tensor:
    """An action loss, and one through every tapped tensor, small enough not to drown it."""
    return out.square().mean() + sum(0.1 * x.sin().mean() for x in visual)


# ---- the table: model x loop x checkpointing x {eager, compiled} -------------------------------------------


def cells(compiled: bool) -> list:
    """All 18 cells. Compiling takes seconds each, so a third of the compiled ones runs always (each loop with
    each kind of checkpointing, each model in each loop), the others with --slow."""
    table = []
    for m, kind in enumerate(MODELS):
        for i, loop in enumerate((Called, Interleaved)):
            for j, (name, reentrant) in enumerate(
                [("plain", None), ("non-reentrant", False), ("reentrant", True)]
            ):
                marks = [pytest.mark.slow] if compiled and (m + i + j) % 3 else []
                cell = pytest.param(kind, loop, reentrant, id=f"{kind}-{loop.__name__}-{name}", marks=marks)
                table.append(cell)
    return table


def check_cell(policy: nn.Module, run: Callable[..., Tensor], layers: int) -> None:
    """Taps before and after the last block: values, gradients of everything, and no second firing."""
    words_BLD, actions_BSE = embeddings()
    two_layers = (layers - 1, layers)
    streams, out = policy.streams(words_BLD, actions_BSE)
    loss = loss_of(out, *(streams[k][:, VISUAL] for k in two_layers))
    expected = gradients(loss, policy, words_BLD, actions_BSE)
    hidden = policy.vlm(inputs_embeds=words_BLD, use_cache=False, output_hidden_states=True).hidden_states

    one, two = (Tap(host(policy.vlm), k) for k in two_layers)
    with one.watch(), two.watch():
        out = run(words_BLD, actions_BSE)
        first = one.hidden_BLD, two.hidden_BLD
        one.require_gradient()
        two.require_gradient()
        # Backward inside the `with`, where checkpointed blocks run again.
        actual = gradients(loss_of(out, one.visual_BND(), two.visual_BND()), policy, words_BLD, actions_BSE)

    assert one.hidden_BLD is first[0]
    assert two.hidden_BLD is first[1]
    torch.testing.assert_close(first[0], hidden[layers - 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(first[1], streams[layers], atol=1e-6, rtol=0)
    torch.testing.assert_close(policy.vlm.norm(first[1]), hidden[layers], atol=3e-6, rtol=0)
    assert actual.keys() == expected.keys()
    assert len(actual) > 9 * layers
    for name, gradient in expected.items():
        torch.testing.assert_close(
            actual[name], gradient, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize(("kind", "loop", "reentrant"), cells(compiled=False))
def test_tapped_values_and_gradients(decoder, kind, loop, reentrant):
    check_cell(policy := loop(decoder, kind, layers=4, reentrant=reentrant), policy, layers=4)


@pytest.mark.parametrize(("kind", "loop", "reentrant"), cells(compiled=True))
def test_tapped_values_and_gradients_compiled(decoder, compiler, kind, loop, reentrant):
    policy = loop(decoder, kind, layers=2, reentrant=reentrant)
    check_cell(policy, torch.compile(policy, backend="aot_eager"), layers=2)


@pytest.mark.parametrize("loop", [Called, Interleaved])
@pytest.mark.parametrize(("reentrant", "times"), [(None, 1), (False, 2), (True, 2)])
def test_checkpointing_runs_the_tapped_norm_again(decoder, loop, reentrant, times):
    # Why the tap disarms: without that, it would hold a tensor of the backward pass.
    policy = loop(decoder, "llama", layers=2, reentrant=reentrant)
    seen = []
    policy.vlm.layers[1].input_layernorm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    policy(*embeddings()).sum().backward()
    assert len(seen) == times


@pytest.mark.parametrize(("loop", "fires"), [(Called, 4), (Interleaved, 0)])
def test_a_hook_on_blocks_never_fires_in_the_interleaved_loop(decoder, loop, fires):
    # Why the tap is a pre-hook on the next norm.
    policy = loop(decoder, "gemma", layers=4, reentrant=None)
    outputs = []
    for block in policy.vlm.layers:
        block.register_forward_hook(lambda _, args, output: outputs.append(output))
    policy(*embeddings())
    assert len(outputs) == fires


@pytest.mark.parametrize("loop", [Called, Interleaved])
def test_the_host_computes_the_same_bits_with_and_without_the_tap(decoder, loop):
    policy = loop(decoder, "qwen2", layers=4, reentrant=None)
    inputs = embeddings()
    before = policy(*inputs)
    tap = Tap(host(policy.vlm), 2)
    assert torch.equal(policy(*inputs), before)
    with tap.watch():
        assert torch.equal(policy(*inputs), before)
    tap.detach()
    assert torch.equal(policy(*inputs), before)
