"""The tap reads the residual stream in every way that hosts run their blocks, with gradient, or raises.

Two ways of running blocks: `Called` is a Hugging Face decoder run as such; `Interleaved` is the loop of pi0
and
SmolVLA, which never calls a block but reaches into it to let an action expert attend to the language model's
tokens.
"""

import copy
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from ranks import in_ranks
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from spatial_forcing.align import SpatialForcing
from spatial_forcing.grid import Features, Layout
from spatial_forcing.hosts.tiny import TinyVLA
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


@pytest.fixture
def compiler(monkeypatch) -> Iterator[None]:
    """A fresh torch.compile, before and after, whose trace records stay out of pytest's log."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)
    torch.compiler.reset()
    yield
    torch.compiler.reset()


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


# ---- when it fires -----------------------------------------------------------------------------------------


def tiny_vla(**changes) -> TinyVLA:
    sizes = {"views": 2, "image_size": 28, "width": 16, "depth": 4, "heads": 2, "max_words": 3, "chunk": 2}
    return TinyVLA(**sizes | changes)


def observation(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """images_BV3HW, words_BK, state_BS."""
    return torch.rand(batch, 2, 3, 28, 28), torch.randint(1, 512, (batch, 3)), torch.randn(batch, 4)


def test_it_holds_the_first_forward_of_the_last_watch():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    first, second = observation(1), observation(3)
    with tap.watch():
        vla(*first)
        vla(*second)
    assert tap.visual_BND().shape == (1, 8, 16)
    vla(*second)
    assert tap.visual_BND().shape == (1, 8, 16)
    with tap.watch():
        vla(*second)
    assert tap.visual_BND().shape == (3, 8, 16)
    with tap.watch():
        assert tap.hidden_BLD is None


def test_it_disarms_when_the_forward_fails():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with pytest.raises(ValueError, match="out of memory"), tap.watch():
        raise ValueError("out of memory")
    vla(*observation())
    assert tap.hidden_BLD is None


def test_it_reads_a_norm_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.LayerNorm(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(input=x)

    model, x = Keyword(), torch.randn(1, 3, 4)
    tap = Tap(Host("keyword", [nn.Identity()], model.norm, 4, Layout(1, 1, 3), lambda h: h), 1)
    with tap.watch():
        model(x)
    assert tap.visual_BND() is x


@pytest.mark.parametrize(
    ("blocks", "recommended", "layer"), [(32, None, 24), (4, None, 3), (1, None, 1), (18, 12, 12)]
)
def test_the_default_layer_is_three_quarters_or_what_the_host_recommends(blocks, recommended, layer):
    modules = nn.ModuleList(nn.ModuleDict({"input_layernorm": nn.Identity()}) for _ in range(blocks))
    record = Host("host", modules, nn.Identity(), 4, LAYOUT, lambda h: h, layer=recommended)
    assert Tap(record).layer == record.default_layer == layer


def test_a_copy_of_a_watched_host_works_and_leaves_the_original_alone():
    # As an exponential moving average makes one, between steps.
    vla, inputs = tiny_vla(), observation()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with tap.watch():
        out = vla(*inputs)
    held = tap.hidden_BLD
    ema = copy.deepcopy(vla)
    assert tap.hidden_BLD is held
    with tap.watch():
        assert torch.equal(ema(*inputs), out)
        assert tap.hidden_BLD is None


# ---- torch.compile -----------------------------------------------------------------------------------------


class CountGraphs:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self):
        self.count = 0

    def __call__(self, graph: torch.fx.GraphModule, inputs: list) -> Callable:
        self.count += 1
        return graph.forward


def compiled(vla: nn.Module, backend: CountGraphs, how: str) -> nn.Module:
    if how == "whole":
        return torch.compile(vla, backend=backend)
    for block in vla.blocks:
        block.compile(backend=backend)
    return vla


def watch_and_run(tap: Tap, run: Callable, inputs: tuple) -> None:
    with tap.watch():
        run(*inputs)


def test_watching_compiles_one_more_graph_and_no_more(compiler):
    vla, inputs, backend = tiny_vla(), observation(), CountGraphs()
    run = compiled(vla, backend, "whole")
    tap = Tap(vla.spatial_forcing_host(), 2)
    for _ in range(4):
        watch_and_run(tap, run, inputs)
        assert tap.visual_BND().shape == (2, 8, 16)
        run(*inputs)
    assert backend.count == 2


@pytest.mark.parametrize("how", ["whole", "block by block"])
def test_a_host_compiled_before_it_was_tapped_raises(compiler, how):
    vla, inputs = tiny_vla(), observation()
    run = compiled(vla, CountGraphs(), how)
    run(*inputs)
    tap = Tap(vla.spatial_forcing_host(), 2)
    watch_and_run(tap, run, inputs)
    with pytest.raises(TapError, match=r"never fired.*before the first compiled call"):
        tap.visual_BND()


def test_blocks_compiled_one_by_one_raise(compiler):
    # The second block runs the graph of the first, which knows no tap.
    vla, inputs = tiny_vla(), observation()
    tap = Tap(vla.spatial_forcing_host(), 2)
    watch_and_run(tap, compiled(vla, CountGraphs(), "block by block"), inputs)
    with pytest.raises(TapError, match=r"skip_nnmodule_hook_guards = False"):
        tap.visual_BND()


@pytest.mark.parametrize("how", ["whole", "block by block"])
def test_with_guards_on_hooks_every_order_works(compiler, how):
    # The way out that the error names.
    vla, inputs = tiny_vla(), observation()
    with torch._dynamo.config.patch(skip_nnmodule_hook_guards=False):
        run = compiled(vla, CountGraphs(), how)
        expected = run(*inputs)
        tap = Tap(vla.spatial_forcing_host(), 2)
        with tap.watch():
            torch.testing.assert_close(run(*inputs), expected)
        assert tap.visual_BND().shape == (2, 8, 16)


# ---- errors ------------------------------------------------------------------------------------------------


def test_a_tap_that_never_fired_raises():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    with pytest.raises(TapError, match="after block 2 of 4 of TinyVLA never fired"):
        tap.visual_BND()
    with tap.watch():
        tiny_vla()(*observation())
    with pytest.raises(TapError, match="another model"):
        tap.visual_BND()
    vla(*observation())
    with pytest.raises(TapError, match=r"inside `with sf\.watch"):
        tap.visual_BND()


@pytest.mark.parametrize("layer", [0, -1, 5])
def test_layers_out_of_range(layer):
    with pytest.raises(TapError, match=f"has 4 blocks; the layer must be 1 to 4, got {layer}"):
        Tap(tiny_vla().spatial_forcing_host(), layer)


@pytest.mark.parametrize("entry", ["input_layernorm", "forward"])
def test_a_block_without_the_named_norm(entry):
    record = replace(tiny_vla().spatial_forcing_host(), entry=entry)
    with pytest.raises(TapError, match=rf"no module '{entry}'. It has: norm1, attention, norm2, mlp"):
        Tap(record, 2)


@pytest.mark.parametrize(
    "wrong", [{"layout": Layout(2, 2, 3)}, {"width": 8}, {"visual": lambda hidden_BLD: hidden_BLD[:, 0]}]
)
def test_visual_tokens_that_do_not_fit_the_record(wrong):
    vla = tiny_vla()
    tap = Tap(replace(vla.spatial_forcing_host(), **wrong), 2)
    watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match=r"shape \(\d, 14, \d+\): check Host\.layout and Host\.visual"):
        tap.visual_BND()


def test_a_host_without_gradient_raises_where_gradients_are_wanted():
    vla = tiny_vla()
    tap = Tap(vla.spatial_forcing_host(), 2)
    vla.requires_grad_(False)
    vla.blocks[2].requires_grad_(True)  # after the tap: does not help
    watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match=r"carry no gradient.*unfreeze"):
        tap.require_gradient()
    with torch.no_grad():
        tap.require_gradient()  # evaluation

    vla.requires_grad_(True)
    with torch.no_grad():
        watch_and_run(tap, vla, observation())
    with pytest.raises(TapError, match="run the forward with gradients on"):
        tap.require_gradient()

    vla.requires_grad_(False)
    vla.blocks[0].mlp[0].weight.requires_grad_(
        True
    )  # one trained weight before the tap is enough, as with LoRA
    watch_and_run(tap, vla, observation())
    tap.require_gradient()


# ---- several processes -------------------------------------------------------------------------------------


class Channels:
    """A teacher without weights: the mean colour of each quarter of an image, and its red squared."""

    width = 4

    def __call__(self, images_BV3HW: Tensor) -> Features:
        quarters_BV3hw = images_BV3HW.unflatten(-1, (2, -1)).unflatten(-3, (2, -1)).mean((-3, -1))
        tokens_BVhwC = torch.cat([quarters_BV3hw, quarters_BV3hw[:, :, :1].square()], 2).movedim(2, -1)
        return Features(tokens_BVhwC, torch.ones(tokens_BVhwC.shape[:-1], dtype=torch.bool))


class Both(nn.Module):
    """Policy and alignment in one module, so that DistributedDataParallel sees both."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.vla = tiny_vla()
        self.sf = SpatialForcing(self.vla.spatial_forcing_host(), Channels())

    def forward(self, images_BV3HW: Tensor, words_BK: Tensor, state_BS: Tensor) -> Tensor:
        with self.sf.watch():
            action_loss = self.vla(images_BV3HW, words_BK, state_BS).square().mean()
        return action_loss + self.sf(images_BV3HW)


def all_gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def ddp_gradients(rank: int, folder: Path) -> dict[str, dict[str, Tensor]]:
    """What one of two processes gets, each from its half of the batch."""
    mine = [x[2 * rank : 2 * rank + 2] for x in torch.load(folder / "inputs.pt")]
    both = DistributedDataParallel(Both())
    for _ in range(2):  # the second step would meet leftovers of the first
        both.zero_grad()
        both(*mine).backward()

    # The five lines: only the policy is wrapped; the projector's gradients are averaged by the loop.
    apart = Both()
    vla = DistributedDataParallel(apart.vla)
    with apart.sf.watch():
        action_loss = vla(*mine).square().mean()
    (action_loss + apart.sf(mine[0])).backward()
    for parameter in apart.sf.parameters():
        dist.all_reduce(parameter.grad)
        parameter.grad /= 2
    return {"together": all_gradients(both.module), "apart": all_gradients(apart)}


def test_two_processes_get_the_gradients_of_one(tmp_path: Path):
    inputs = observation(batch=4)
    torch.save(inputs, tmp_path / "inputs.pt")
    ranks = in_ranks(ddp_gradients, tmp_path, folder=tmp_path)

    alone = Both()
    alone(*inputs).backward()
    expected = all_gradients(alone)
    assert any(name.startswith("sf.projector") for name in expected)
    for gradients_by_name in (found for parallel in ranks for found in parallel.values()):
        assert gradients_by_name.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients_by_name[name], gradient, atol=1e-6, rtol=1e-5)
