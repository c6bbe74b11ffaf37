"""Runs a probe on policies: one pass over the frames for each policy.

Training frames come first, then heads are fitted, then test frames are judged: no tokens are kept but a
sample of fixed size for DPT heads and a few frames to draw. Policies are read one after the other, so that
the memory is that of one.

Shapes: F frames of a batch, V views, H W pixels, N tokens, C channels, h w cells of the depth map.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.hosts import host_of
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths
from spatial_forcing.probe.frames import Phase, ProbeFrames, latest
from spatial_forcing.probe.points import Columns, positions_in
from spatial_forcing.probe.policies import ProbedPolicy, four_before
from spatial_forcing.probe.quality import Tallies
from spatial_forcing.probe.reading import HeadSettings, Known, OtherFrames, Source, SourceNumbers, part_of
from spatial_forcing.probe.records import MEAN, PIXELS, SHUFFLED, TEACHER
from spatial_forcing.probe.tokens import SiteTaps
from spatial_forcing.probe.visual import VisualTokens
from spatial_forcing.teachers.base import FrozenTeacher, stack_views

# Every recorded map is made at least this fine, so that it fills the cells.
LEAST_PIXELS = 64
DRAWN = 4


@dataclass(frozen=True)
class Drawn:
    """A test frame to draw, with true and predicted depth and tokens.

    Attributes:
        episode, frame: its indices.
        images: image_3HW of each camera, in [0, 1].
        depth_Vhw: true depth on the cells.
        predicted_Vhw: of the linear head at the policy's aligned site, or of the DPT head without one.
        tokens_VHWC, affine_V23, valid_VHW: there, as in ``VisualTokens``; float16.
    """

    episode: int
    frame: int
    images: list[Tensor]
    depth_Vhw: Tensor
    predicted_Vhw: Tensor
    tokens_VHWC: Tensor
    affine_V23: Tensor
    valid_VHW: Tensor


@dataclass
class PolicyNumbers:
    """Results of one policy.

    Attributes:
        grid: see :func:`grid_of`.
        sites: by site.
        references: by name; only of the first policy on each grid.
        drawn: test frames to draw.
    """

    grid: tuple[Any, ...] = ()
    sites: dict[str, SourceNumbers] = field(default_factory=dict)
    references: dict[str, SourceNumbers] = field(default_factory=dict)
    drawn: list[Drawn] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """Plan of a probe: frames, depth, head settings, positions and teacher, the same for every policy.

    Attributes:
        frames, depths: of the data set.
        settings: of the heads.
        columns: positions that are read, too.
        teacher: its features are a reference; None to do without.
        advance: called with the number of frames just finished.
    """

    frames: ProbeFrames
    depths: Depths
    settings: HeadSettings
    columns: Columns = field(default_factory=dict)
    teacher: FrozenTeacher | None = None
    advance: Callable[[int], None] = lambda done: None


class PolicyPass:
    """One pass over the frames for a policy.

    Args:
        policy: which.
        sites: that the linear head reads.
        dpt_sites: that DPT heads read, each with the three before it.
        plan: what else.
        references: whether the references are read beside it, on its grid.
    """

    def __init__(
        self,
        policy: ProbedPolicy,
        sites: Sequence[str],
        dpt_sites: Sequence[str],
        plan: Plan,
        *,
        references: bool,
    ):
        self.policy, self.plan = policy, plan
        linear = "linear" in plan.settings.heads
        chosen = dict.fromkeys([*(sites if linear else ()), *dpt_sites])
        self.layers = {
            site: four_before(policy.module, site) if site in dpt_sites else [site] for site in chosen
        }
        self.aligned = policy.aligned_site if policy.aligned_site in chosen else next(iter(chosen))
        self.sources = {
            site: Source(plan.settings, dpt=site in dpt_sites, linear=linear and site in sites)
            for site in chosen
        }
        self.references = self._references(bool(dpt_sites), linear) if references else {}
        self.others = OtherFrames()
        self.tapped = dict.fromkeys([name for names in self.layers.values() for name in names])
        self.cameras: tuple[str, ...] | None = None

    def _references(self, dpt: bool, linear: bool) -> dict[str, Source]:
        settings = self.plan.settings
        found = {MEAN: Source(settings, dpt=False)}
        for name in (PIXELS, TEACHER, SHUFFLED):
            if name != TEACHER or self.plan.teacher is not None:
                found[name] = Source(settings, dpt=dpt, linear=linear)
        return found

    def run(self) -> PolicyNumbers:
        """Reads all frames, fits the heads and evaluates them."""
        found = PolicyNumbers()
        with SiteTaps(self.policy.module, list(self.tapped)) as read:
            self._over("train", read, self._learn)
            for source in (*self.sources.values(), *self.references.values()):
                source.fit()
            wanted = _evenly(self.plan.frames.indices["test"], DRAWN)
            self._over("test", read, lambda *given: found.drawn.extend(self._judge(wanted, *given)))
        found.sites = {site: source.numbers() for site, source in self.sources.items()}
        found.references = {name: source.numbers() for name, source in self.references.items()}
        return found

    def _over(self, phase: Phase, read: SiteTaps, use: Callable[..., Any]) -> None:
        plan = self.plan
        for batch in plan.frames.batches(phase):
            tokens = read(self.policy.prepared(batch))
            names = tokens[self.aligned].cameras or ()
            if self.cameras is None:
                self.cameras = names
            elif names != self.cameras:
                raise ProbeError(
                    f"The frames do not all show the same cameras: {', '.join(self.cameras)}, then "
                    f"{', '.join(names)}."
                )
            ours = [self.policy.cameras[name] for name in names]
            positions = positions_in(batch, plan.columns) if plan.columns else None
            known = Known(
                plan.depths.maps(batch, ours, LEAST_PIXELS),
                batch["episode_index"],
                plan.frames.held_of(batch),
                positions,
            )
            use(batch, tokens, known, [latest(batch[camera]) for camera in ours])
            plan.advance(len(batch["index"]))

    def _learn(self, batch: Any, tokens: dict[str, VisualTokens], known: Known, images: list[Tensor]) -> None:
        for site, source in self.sources.items():
            source.learn([tokens[name] for name in self.layers[site]], known)
        for name, layers, of in self._reference_tokens(tokens, known, images):
            self.references[name].learn(layers, of)

    def _judge(
        self,
        wanted: set[int],
        batch: Any,
        tokens: dict[str, VisualTokens],
        known: Known,
        images: list[Tensor],
    ) -> list[Drawn]:
        read: dict[str, Tensor] = {}
        for site, source in self.sources.items():
            predicted = source.judge([tokens[name] for name in self.layers[site]], known)
            if site == self.aligned:
                read = predicted
        for name, layers, of in self._reference_tokens(tokens, known, images):
            self.references[name].judge(layers, of)
        shown = read.get("linear", read.get("dpt"))
        here = tokens[self.aligned]
        cells_FVhw = self.sources[self.aligned].cells(here, known)
        return [
            Drawn(
                int(batch["episode_index"][i]),
                int(batch["frame_index"][i]),
                [image[i].float().cpu() for image in images],
                cells_FVhw[i],
                torch.full_like(cells_FVhw[i], torch.nan) if shown is None else shown[i],
                here.masked(here.valid_FVHW).tokens_FVHWC[i].clamp(-6e4, 6e4).half(),
                here.affine_FV23[i],
                here.valid_FVHW[i],
            )
            for i, index in enumerate(batch["index"].tolist())
            if index in wanted
        ]

    def _reference_tokens(
        self, tokens: Mapping[str, VisualTokens], known: Known, images: list[Tensor]
    ) -> list[tuple[str, list[VisualTokens], Known]]:
        """Tokens of every reference on the grid of the aligned site, as four layers for DPT heads."""
        if not self.references:
            return []
        here = tokens[self.aligned]
        nothing = replace(here, tokens_FVHWC=torch.zeros_like(here.tokens_FVHWC[..., :1]))
        found = [(MEAN, [nothing], known), (PIXELS, [here.patches(images)] * 4, known)]
        if self.plan.teacher is not None:
            found.append((TEACHER, [here.carry(self.plan.teacher(stack_views(images)))] * 4, known))
        layers = [tokens[name] for name in self.layers[self.aligned]]
        if (other := self.others(layers, known.episode_F)) is not None:
            at, stand_ins = other
            parts = [
                replace(
                    of,
                    tokens_FVHWC=stand_in,
                    affine_FV23=of.affine_FV23[at],
                    valid_FVHW=of.valid_FVHW[at],
                )
                for of, stand_in in zip(layers, stand_ins, strict=True)
            ]
            found.append((SHUFFLED, parts, part_of(known, at)))
        return found


def grid_of(policy: ProbedPolicy) -> tuple[Any, ...]:
    """Key that is equal for policies that see the images at the same positions."""
    return (*policy.cameras.values(), host_of(policy.module).layout)


def read_policies(
    policies: Sequence[ProbedPolicy],
    sites: Mapping[str, Sequence[str]],
    dpt_sites: Mapping[str, Sequence[str]],
    plan: Plan,
    stage: Callable[[str], AbstractContextManager[Callable[[int], None]]],
) -> dict[str, PolicyNumbers]:
    """Probes every policy, one after the other; references once for each grid.

    Args:
        sites, dpt_sites: by policy.
        stage: (name of a policy) -> a context whose value is told of finished frames.
    """
    found: dict[str, PolicyNumbers] = {}
    grids: set[tuple[Any, ...]] = set()
    for policy in policies:
        grid = grid_of(policy)
        with stage(policy.name) as advance:
            of = PolicyPass(
                policy,
                sites[policy.name],
                dpt_sites[policy.name],
                replace(plan, advance=advance),
                references=grid not in grids,
            )
            found[policy.name] = replace(of.run(), grid=grid)
        grids.add(grid)
    return found


def _evenly(indices: Sequence[int], count: int) -> set[int]:
    at = torch.linspace(0, len(indices) - 1, min(count, len(indices))).round().long()
    return {indices[i] for i in at.tolist()}


def tallies_of(numbers: PolicyNumbers) -> dict[str, Tallies]:
    """Tallies of the linear head, by site."""
    return {site: of.linear for site, of in numbers.sites.items() if of.linear is not None}
