"""How well the 3D points that a policy's visual tokens show can be read from the tokens, in centimetres.

    python recipes/points_in_tokens.py --dataset outputs/reach-points --comparison outputs/reach-surface

A small network is trained to read each token's point (recorded depth, robot's frame) from that token alone,
on training episodes, and judged on the comparison's held-out ones. A linear head will not do: of a policy
that is *given* the points it reads them 12 cm off, this one 2 cm. Beside it stands what the place of a token
alone says: its mean point. Tokens are read where the host's record taps it, of every run of the comparison
and of the checkpoints that --policies names. Writes docs/results/probes/points-in-tokens.json; some 30 s a
policy.

Shapes: F frames, V views, H W tokens, n tokens of all frames, D width.
"""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import tyro
from torch import Tensor, nn

from spatial_forcing import provenance
from spatial_forcing.compare.folder import comparison_in
from spatial_forcing.compare.plan import training_of
from spatial_forcing.datasets import open_dataset
from spatial_forcing.files import write_json
from spatial_forcing.geometry.points import PointSource
from spatial_forcing.geometry.stored import point_source
from spatial_forcing.guard import guarded
from spatial_forcing.probe.frames import ProbeFrames, Split
from spatial_forcing.probe.policies import ProbedPolicy, load_policies, named_policies
from spatial_forcing.probe.tokens import SiteTaps

HIDDEN, STEPS, TOKENS = 384, 1500, 1024
GOAL = "observation.environment_state"  # its last three numbers
NEAR = 0.06  # metres from the goal: its tokens
HEAVY = 20.0  # weight of those, as they are one of a hundred


@dataclass
class Args:
    """Options of the recipe."""

    dataset: Path
    comparison: Path
    policies: tuple[str, ...] = ()
    """More checkpoints, name=folder."""
    seeds: tuple[int, ...] = ()
    """Of the runs that are read; all if none are named."""
    frames: int = 1120
    """Frames of training and test together."""
    out: Path = Path(__file__).resolve().parents[1] / "docs" / "results" / "probes" / "points-in-tokens.json"


@dataclass(frozen=True)
class Read:
    """Tokens of some frames with the points that they show.

    Attributes:
        tokens_nD, points_n3: of those whose point is known; metres.
        place_n: the token's number in its frame.
        goal_n: whether it shows the goal.
    """

    tokens_nD: Tensor
    points_n3: Tensor
    place_n: Tensor
    goal_n: Tensor


def read(policy: ProbedPolicy, frames: ProbeFrames, phase: Any, source: PointSource) -> Read:
    """The tokens of a policy, at its tap, of the frames of a phase."""
    found = defaultdict(list)
    with SiteTaps(policy.module, [policy.aligned_site]) as taps:
        for batch in frames.batches(phase):
            tokens_FVHWD = taps(policy.prepared(batch))[policy.aligned_site].tokens_FVHWC
            F, V, H, W, D = tokens_FVHWD.shape
            points_FN3 = source.points(batch, list(policy.cameras.values()), H, W).flatten(1, 3)
            known_FN = points_FN3.isfinite().all(-1)
            off_FN = (points_FN3 - batch[GOAL].reshape(F, 1, -1)[..., -3:]).norm(dim=-1)
            found["tokens_nD"].append(tokens_FVHWD.reshape(F, -1, D)[known_FN])
            found["points_n3"].append(points_FN3[known_FN])
            found["place_n"].append(torch.arange(V * H * W).expand(F, -1)[known_FN])
            found["goal_n"].append((off_FN < NEAR)[known_FN])
    return Read(**{name: torch.cat(of) for name, of in found.items()})


def reader_of(train: Read) -> nn.Module:
    """A network that reads a point from a token, trained on some."""
    torch.manual_seed(0)
    (mean_D, std_D), (mean_3, std_3) = ((of.mean(0), of.std(0)) for of in (train.tokens_nD, train.points_n3))
    std_D = std_D.clamp(min=1e-6)
    D = len(mean_D)
    net = nn.Sequential(
        nn.Linear(D, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 3)
    )
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    weight_n = 1 + HEAVY * train.goal_n.float()
    for _ in range(STEPS):
        at = torch.randint(len(train.place_n), (TOKENS,))
        said_n3 = net((train.tokens_nD[at] - mean_D) / std_D)
        off_n = (said_n3 - (train.points_n3[at] - mean_3) / std_3).abs().sum(-1)
        optimizer.zero_grad()
        (off_n * weight_n[at]).mean().backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():  # standardising becomes a part of the first and the last layer
        first, last = net[0], net[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        first.weight /= std_D
        first.bias -= first.weight @ mean_D
        last.weight *= std_3[:, None]
        last.bias.copy_(last.bias * std_3 + mean_3)
    return net


def errors_cm(said_n3: Tensor, test: Read) -> dict[str, float]:
    """Median distances to the points, of all tokens and of those that show the goal."""
    off_n = 100 * (said_n3 - test.points_n3).norm(dim=-1)
    return {"all": float(off_n.median()), "goal": float(off_n[test.goal_n].median())}


def by_place(train: Read, test: Read) -> Tensor:
    """The mean point of each token's place, said_n3."""
    count = int(train.place_n.max()) + 1
    sum_N3 = torch.zeros(count, 3).index_add(0, train.place_n, train.points_n3)
    seen_N = torch.bincount(train.place_n, minlength=count).clamp(min=1)
    return (sum_N3 / seen_N[:, None])[test.place_n.clamp(max=count - 1)]


def main(args: Args) -> None:
    """Reads every policy and prints and writes the errors."""
    made, comparison = provenance.made_with(), comparison_in(args.comparison)
    named = {
        f"{run.arm.name} {run.seed}": str(training_of(comparison, args.comparison, run))
        for run in comparison.runs()
        if run.arm.name != "blind" and run.seed in (args.seeds or comparison.seeds)
    }
    named |= named_policies(args.policies) if args.policies else {}
    dataset = open_dataset(args.dataset)
    frames = ProbeFrames(dataset, Split(comparison.split.train, comparison.split.heldout), args.frames)
    rows: dict[str, dict[str, float]] = {}
    for name, folder in named.items():
        policy = load_policies({name: folder}, dataset)[0]
        source = point_source("recorded", dataset, list(policy.cameras.values()), None, "robot")
        train, test = (read(policy, frames, phase, source) for phase in ("train", "test"))
        if not rows:
            rows["mean of the place"] = errors_cm(by_place(train, test), test)
        reader = reader_of(train)
        with torch.no_grad():
            rows[name] = errors_cm(reader(test.tokens_nD), test)
        print(f"{name:24} {rows[name]['all']:5.1f} cm, of the goal {rows[name]['goal']:5.1f} cm", flush=True)
    write_json(args.out, {"rows": rows, "frames": args.frames, **made})


if __name__ == "__main__":
    options = tyro.cli(Args, description=__doc__)
    guarded(lambda: main(options), lambda: "Nothing was written.")
