"""The tap under torch.compile: one more graph, and an error where a graph knows no tap."""

from collections.abc import Callable

import pytest
import torch
from small_vla import observation, tiny_vla, watch_and_run
from torch import nn

from spatial_forcing.tap import Tap, TapError


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
