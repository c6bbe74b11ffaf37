"""The Python API, probe, statistics and simulation: what raw torch errors would say badly, or not at all."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from malformed.call import Call, given, vla
from malformed.case import Case, api
from spatial_forcing.estimates import difference_over_seeds, rate, ratio_over_seeds
from spatial_forcing.power import detectable_difference
from spatial_forcing.probe import DepthProbe, Frames, run_probe, tapped_tokens
from spatial_forcing.reach import Curve, steps_to_target
from spatial_forcing.report import write_report
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.stats import holm, mcnemar, mcnemar_over_seeds, wilson

F, CELLS = 6, (6, 1, 2, 2)


def probe_inputs(**changed: Any) -> tuple[Any, ...]:
    usual = {
        "tokens": torch.rand(*CELLS, 3),
        "depth": 1 + torch.rand(6, 1, 8, 8),
        "episodes": torch.arange(F) // 2,
    }
    return tuple((usual | changed).values())


def frames(first_episode: int) -> Frames:
    return Frames(torch.rand(6, 1, 8, 8), first_episode + torch.arange(F))


def fitted(**changed: Any) -> Any:
    return DepthProbe(sub_grid=2).fit(*probe_inputs(**changed))


PROBES = [
    api("probe", kind, what, given(call), says)
    for kind, what, call, says in (
        ("size", "flat tokens", lambda: fitted(tokens=torch.rand(6, 4)), "expected floating numbers"),
        ("type", "whole tokens", lambda: fitted(tokens=torch.ones(*CELLS, 3).long()), "expected floating"),
        ("number", "tokens of NaN", lambda: fitted(tokens=torch.full((*CELLS, 3), math.nan)), "NaN"),
        ("size", "depth of others", lambda: fitted(depth=torch.rand(5, 1, 8, 8)), "same frames and views"),
        ("size", "flat depth", lambda: fitted(depth=torch.rand(6, 8)), "and depth"),
        ("size", "small depth", lambda: fitted(depth=1 + torch.rand(6, 1, 2, 2)), "smaller sub_grid"),
        ("number", "depth in millimetres", lambda: fitted(depth=torch.full((6, 1, 8, 8), 900.0)), "metres"),
        ("size", "one episode", lambda: fitted(episodes=torch.zeros(F)), "at least two episodes"),
        ("size", "episodes of others", lambda: fitted(episodes=torch.arange(4)), "one episode a frame"),
        ("number", "sub-grid 0", lambda: DepthProbe(sub_grid=0), "at least 1"),
        ("number", "far -1", lambda: DepthProbe(far=-1), "above zero"),
        ("number", "far NaN", lambda: DepthProbe(far=math.nan), "above zero"),
        ("missing", "no ridges", lambda: DepthProbe(ridges=()), "ridge"),
        ("number", "ridge -1", lambda: DepthProbe(ridges=(-1.0,)), "ridge"),
        ("missing", "not fitted", lambda: DepthProbe().predict(torch.rand(*CELLS, 3)), "call fit() first"),
        ("size", "predict others", lambda: fitted().predict(torch.rand(6, 1, 2, 2, 9)), "Expected tokens"),
        (
            "missing",
            "no sources",
            lambda: run_probe({}, frames(0), frames(F)),
            "no source of tokens",
        ),
        (
            "taken",
            "test on training",
            lambda: run_probe({}, frames(0), frames(0)),
            "are in both training and test",
        ),
        ("missing", "no batches", lambda: tapped_tokens(vla(), []), "no batches"),
        ("foreign", "no host", lambda: tapped_tokens(nn.Linear(2, 2), []), "is not a host"),
    )
]

STATISTICS = [
    api("stats", kind, what, given(call), says)
    for kind, what, call, says in (
        ("number", "5 of 3", lambda: wilson(5, 3), "got 5 of 3"),
        ("number", "-1 of 3", lambda: wilson(-1, 3), "got -1 of 3"),
        ("number", "0 of 0", lambda: wilson(0, 0), "got 0 of 0"),
        ("number", "confidence 2", lambda: wilson(1, 3, 2.0), "between 0 and 1, got 2.0"),
        ("number", "confidence NaN", lambda: wilson(1, 3, math.nan), "between 0 and 1, got nan"),
        ("type", "text", lambda: wilson("1", 3), "got '1' of 3"),
        ("type", "half a success", lambda: wilson(1.5, 3), "got 1.5 of 3"),
        ("size", "unequal arms", lambda: mcnemar([True], [True, False]), "got 1 and 2"),
        ("size", "no episodes", lambda: mcnemar([], []), "got 0 and 0"),
        (
            "foreign",
            "other episodes",
            lambda: mcnemar([True], [True], a_episodes=[1], b_episodes=[2]),
            "not evaluated on the same episodes",
        ),
        ("size", "empty curve", lambda: steps_to_target(Curve([], []), Curve([1], [1])), "at least one step"),
        (
            "number",
            "curve of NaN",
            lambda: steps_to_target(Curve([1], [math.nan]), Curve([1], [1])),
            "must be finite",
        ),
        ("number", "steps back", lambda: steps_to_target(Curve([2, 1], [1, 1]), Curve([1], [1])), "increase"),
        ("number", "ratio of zero", lambda: ratio_over_seeds([0], [1]), "steps above zero"),
        ("number", "p-value 2", lambda: holm([0.1, 2.0]), "between 0 and 1"),
        ("size", "no seeds", lambda: mcnemar_over_seeds({}), "an episode of each"),
        ("size", "empty seed", lambda: rate({0: {1: 1.0}, 1: {}}), "an episode of each"),
        ("number", "share 2", lambda: detectable_difference(50, discordant=2), "between 0 and 1, got 2"),
        ("number", "-3 seeds", lambda: detectable_difference(50, -3), "at least 0, got -150"),
        ("number", "difference of NaN", lambda: difference_over_seeds([1], [math.nan]), "finite"),
    )
]


def dataset_error(name: str, *arguments: Any, **options: Any) -> Call:
    def call(bench: Any, here: Path) -> Any:
        from spatial_forcing.sim import collect, env

        home = collect if hasattr(collect, name) else env
        return getattr(home, name)(*(here if a == "here" else a for a in arguments), **options)

    return call


SIMULATION = [
    api("sim", kind, what, call, says)
    for kind, what, call, says in (
        ("name", "task", dataset_error("SimEnv", "reech-v3"), "Did you mean 'reach-v3'"),
        ("name", "camera", dataset_error("SimEnv", camera="moving"), "Unknown camera mode 'moving'"),
        ("name", "start", dataset_error("SimEnv", start="there"), "Unknown start 'there'"),
        ("number", "size 0", dataset_error("SimEnv", size=0), "size must be at least"),
        ("number", "max_steps -1", dataset_error("SimEnv", max_steps=-1), "max_steps must be at least 1"),
        ("number", "look_every 0", dataset_error("SimEnv", look_every=0), "look_every must be at least 1"),
        ("type", "episodes 1.5", dataset_error("DemoSpec", episodes=1.5), "episodes"),
        ("number", "noise -1", dataset_error("DemoSpec", noise=-1), "noise must be at least 0"),
        ("missing", "no tasks", dataset_error("DemoSpec", tasks=()), "Name at least one task"),
        ("missing", "no demonstrations", dataset_error("demo_dataset", "here"), "holds no demonstrations"),
        ("missing", "no geometry", dataset_error("load_geometry", "here", 0), "has no geometry"),
        ("missing", "no policy", lambda b, h: LoadedPolicy(h), "is not a policy checkpoint"),
        ("foreign", "no results", lambda b, h: write_report({}, h), "has no 'title'"),
        ("type", "results in a list", lambda b, h: write_report([], h), "must be"),
    )
]


CASES: list[Case] = [*PROBES, *STATISTICS, *SIMULATION]
