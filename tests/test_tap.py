"""The tap against design facts: it reads the residual stream in every way that hosts run their blocks, with gradient, or raises.

Two ways of running blocks: `Called` is a Hugging Face decoder run as such; `Interleaved` is the loop of pi0 and SmolVLA, which
never calls a block but reaches into it to let an action expert attend to the language model's tokens.
"""

import copy
import socket

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from spatial_forcing.grid import Layout
from spatial_forcing.tap import Host, Tap, TapError

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
    """Two decoders whose tokens attend to each other, causally: the expert's to all, the language model's to its own."""

    def __init__(self, decoder, kind: str, layers: int, reentrant: bool | None):
        super().__init__()
        self.vlm, self.expert = decoder(kind, layers=layers), decoder(kind, width=16, layers=layers)
        self.head, self.reentrant = nn.Linear(16, 3), reentrant

    def block(self, k: int, words_BLD: Tensor, actions_BSE: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        layers = (self.vlm.layers[k], self.expert.layers[k])
        normed = [layer.input_layernorm(x) for layer, x in zip(layers, (words_BLD, actions_BSE), strict=True)]
        q, k_, v = (
            torch.cat(
                [getattr(layer.self_attn, name)(x).unflatten(-1, (-1, 8)) for layer, x in zip(layers, normed, strict=True)], 1
            ).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        q, k_ = apply_rotary_pos_emb(q, k_, cos, sin)
        attended = nn.functional.scaled_dot_product_attention(q, k_, v, is_causal=True, enable_gqa=True)
        parts = attended.transpose(1, 2).flatten(2).split([words_BLD.shape[1], actions_BSE.shape[1]], dim=1)
        out = []
        for layer, x, part in zip(layers, (words_BLD, actions_BSE), parts, strict=True):
            x = x + layer.self_attn.o_proj(part)
            out.append(x + layer.mlp(layer.post_attention_layernorm(x)))
        return out[0], out[1]

    def run(self, words_BLD: Tensor, actions_BSE: Tensor, reentrant: bool | None) -> tuple[list[Tensor], Tensor]:
        cos_sin = self.vlm.rotary_emb(words_BLD, torch.arange(words_BLD.shape[1] + actions_BSE.shape[1])[None])
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


# ---- the table: {model} x {called, interleaved} x {no, non-reentrant, reentrant checkpointing} x {eager, compiled} -------------

LOOPS, CHECKPOINTING = (Called, Interleaved), (None, False, True)


def cells(compiled: bool) -> list:
    """All 18 cells; compiling takes seconds each, so of the compiled ones a third runs always: every loop with every kind of
    checkpointing, and every model in both loops."""
    table = []
    for m, kind in enumerate(MODELS):
        for i, loop in enumerate(LOOPS):
            for j, reentrant in enumerate(CHECKPOINTING):
                marks = [pytest.mark.slow] if compiled and (m + i + j) % 3 else []
                name = {None: "plain", False: "non-reentrant", True: "reentrant"}[reentrant]
                table.append(pytest.param(kind, loop, reentrant, id=f"{kind}-{loop.__name__}-{name}", marks=marks))
    return table


def check_cell(policy: nn.Module, run, reentrant: bool | None, layers: int) -> None:
    words_BLD, actions_BSE = embeddings()
    record = host(policy.vlm)
    streams, out = policy.streams(words_BLD, actions_BSE)
    depths = (layers - 1, layers)
    expected = gradients(loss_of(out, *(streams[k][:, VISUAL] for k in depths)), policy, words_BLD, actions_BSE)
    policy.vlm.eval()  # without checkpointing
    hidden = policy.vlm(inputs_embeds=words_BLD, use_cache=False, output_hidden_states=True).hidden_states
    policy.vlm.train()

    taps = {k: Tap(record, k) for k in depths}
    with taps[depths[0]].watch(), taps[depths[1]].watch():
        out_tapped = run(words_BLD, actions_BSE)
        for tap in taps.values():
            tap.require_gradient()
        first = {k: tap.hidden_BLD for k, tap in taps.items()}
        # Backward inside the `with`, where the checkpointed blocks run again, must not fire the tap again.
        loss = loss_of(out_tapped, *(tap.visual_BND() for tap in taps.values()))
        actual = gradients(loss, policy, words_BLD, actions_BSE)

    torch.testing.assert_close(first[layers - 1], hidden[layers - 1], atol=1e-6, rtol=0)
    torch.testing.assert_close(first[layers], streams[layers], atol=1e-6, rtol=0)
    torch.testing.assert_close(policy.vlm.norm(first[layers]), hidden[layers], atol=3e-6, rtol=0)
    assert all(tap.hidden_BLD is first[k] and not tap.armed for k, tap in taps.items())
    assert actual.keys() == expected.keys() and len(actual) > 9 * layers
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("kind", "loop", "reentrant"), cells(compiled=False))
def test_tapped_values_and_gradients(decoder, kind, loop, reentrant):
    policy = loop(decoder, kind, layers=4, reentrant=reentrant)
    runs = []
    policy.vlm.layers[3].input_layernorm.register_forward_pre_hook(lambda *_: runs.append(torch.is_grad_enabled()))
    check_cell(policy, policy, reentrant, layers=4)
    # What the tap had to withstand: the reader ran again in backward (twice without hooks, as reference; once without gradient).
    watched = runs[2:] if loop is Called else runs[1:]
    assert len(runs) >= 3 if reentrant is not None else len(runs) >= 2
    assert watched


@pytest.mark.parametrize(("kind", "loop", "reentrant"), cells(compiled=True))
def test_tapped_values_and_gradients_compiled(decoder, kind, loop, reentrant):
    torch.compiler.reset()
    policy = loop(decoder, kind, layers=2, reentrant=reentrant)
    check_cell(policy, torch.compile(policy, backend="aot_eager"), reentrant, layers=2)
