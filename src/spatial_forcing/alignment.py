"""Alignments: records of which tokens are aligned with which target, loss and weight; and their execution.

Shapes: B batch, V views, H W pixels, C width of the target.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn

from spatial_forcing.control import CONTROLS
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import Features
from spatial_forcing.losses import Loss, check_weighs, loss_of
from spatial_forcing.losses.cosine import cosine_distance
from spatial_forcing.mixture import MixedProjector, MixedTap, name_of, sites_named, tap_at
from spatial_forcing.on_grid import POINTS, Given, OnGrid, width_with
from spatial_forcing.projector import PROJECTORS, ConvProjector, Projector, check_norm
from spatial_forcing.ranges import check_position_embedding, check_statistics_pair, check_together
from spatial_forcing.schedules import Schedule, Weight, schedule_of, weight_at
from spatial_forcing.site import Host
from spatial_forcing.tap import Tap
from spatial_forcing.target import HasWidth, Target, ask, target_of


@dataclass(frozen=True, eq=False)
class Alignment:
    """One alignment: the site of the host's tokens, the target, the loss and its weight.

    Attributes:
        site: where the host's tokens are read, ``"blocks.12"`` or ``"vision.-1"`` (see ``Host.site``); the
            layer that the host recommends if None; or several, ``"blocks.6+12+18"``, whose tokens are mixed
            with learned weights (see ``spatial_forcing.mixture``).
        target: a model from ``load_teacher``, a ``FeatureStore``, or anything with a ``width`` that maps
            images_BV3HW to :class:`Features`. It is neither trained nor saved.
        loss: by name (see ``spatial_forcing.losses``), or a function of the same arguments.
        weight: w, finite, 0 or more: a number, or a schedule of the training step, as text or as anything
            that maps a step to a number (see ``spatial_forcing.schedules``). Zero turns the alignment off and
            leaves everything else running.
        layer: of the target; the one that it gives by itself if None.
        name: for logs and state dicts, where there are several; the site's with ``_`` for ``.`` if None.
        norm: the projector's norm, ``"layer"`` or ``"batch"``.
        projector: ``"mlp"``, or ``"conv"``: one convolution over the tokens' grid (iREPA, arXiv 2512.10794).
        position_embedding: how much sinusoidal UV embedding is added to the target's tokens, 0 to 1, in
            units of their root mean square, so that it weighs the same for every teacher; 0 for none. The
            published code adds it in absolute units (``published=True``).
        standardize: (mean_C, std_C) of the target's features over a data set, finite. Removes what all its
            tokens share, which a cosine would reward for nothing; usually ``target.stats``.
        spatial_norm: standardise the features of each view over its tokens, channel by channel, so that only
            how places differ is left (iREPA).
        published: the public code's numerics: corner-aligned resampling without antialiasing, absolute
            position embedding. It knows no padding: images that the host pads are an error.
        control: a target without the teacher's content, for comparisons: ``"shuffled"`` or ``"place"``, see
            ``spatial_forcing.control``.
        points: how the 3D points of the tokens enter the target, where its features have any: ``"added"``,
            their embedding (``spatial_forcing.xyz``) in place of that of the pixel's place, at the same
            share; ``"concatenated"`` to the features, with half of the target's length; or ``"alone"``.
        token_weights: weigh tokens in the loss by the weights that come with the target's features (see
            ``spatial_forcing.token_weights``): a teacher's confidence, or a mask of what matters.
        shares: name of another alignment in the list whose projector this one uses, too (ROCKET, arXiv
            2602.17951).
        hidden_share: share of the projector's hidden units that this alignment uses, the first ones, above 0
            and up to 1. ROCKET's go from 0.2 for the first of the sites to 1 for the last.

    Raises:
        SpatialForcingError: an option that does not exist, or a number out of its range.
    """

    site: str | None
    target: Target | HasWidth
    loss: str | Loss = "cosine"
    weight: Weight = 0.5
    layer: int | None = None
    name: str | None = None
    norm: Literal["layer", "batch"] = "layer"
    projector: Literal["mlp", "conv"] = "mlp"
    position_embedding: float = 0.1
    standardize: tuple[Tensor, Tensor] | None = None
    spatial_norm: bool = False
    published: bool = False
    control: Literal["shuffled", "place"] | None = None
    points: Literal["added", "concatenated", "alone"] | None = None
    token_weights: bool = False
    shares: str | None = None
    hidden_share: float = 1.0

    def __post_init__(self) -> None:
        target_of(self.target)
        loss = loss_of(self.loss)
        if self.token_weights:
            check_weighs(loss)
        schedule_of(self.weight)
        check_position_embedding(self.position_embedding)
        if self.control is not None and self.control not in CONTROLS:
            raise UnknownNameError("control", self.control, CONTROLS)
        if self.points is not None and self.points not in POINTS:
            raise UnknownNameError("use of points", self.points, POINTS)
        if self.projector not in PROJECTORS:
            raise UnknownNameError("projector", self.projector, PROJECTORS)
        check_norm(self.norm)
        if self.standardize is not None:
            check_statistics_pair(self.standardize)
        if not isinstance(self.token_weights, bool):
            raise SpatialForcingError(
                "token_weights=True weighs tokens by the weights that come with the features; got "
                f"{self.token_weights!r}. Which weights those are is said where they are stored."
            )
        check_together(self.projector, self.norm, self.points, self.position_embedding, self.spatial_norm)
        if not 0 < self.hidden_share <= 1 or (self.hidden_share < 1 and self.projector == "conv"):
            raise SpatialForcingError(
                "hidden_share is the share of an mlp projector's hidden units that are used, above 0 and up "
                f"to 1; got {self.hidden_share!r} for projector={self.projector!r}."
            )
        named = self.name is None or (isinstance(self.name, str) and re.fullmatch(r"[\w-]+", self.name))
        if not named or hasattr(nn.ModuleDict, str(self.name)):
            raise SpatialForcingError(
                "The name of an alignment is of letters, digits, - and _, and not one of "
                f"torch's modules' own; got {self.name!r}."
            )


class AlignmentOptions(TypedDict, total=False):
    """Options of ``SpatialForcing(host, teacher, ...)`` besides the weight: see :class:`Alignment`."""

    site: str | None
    loss: str | Loss
    layer: int | None
    norm: Literal["layer", "batch"]
    projector: Literal["mlp", "conv"]
    position_embedding: float
    standardize: tuple[Tensor, Tensor] | None
    spatial_norm: bool
    published: bool
    control: Literal["shuffled", "place"] | None
    points: Literal["added", "concatenated", "alone"] | None
    token_weights: bool
    hidden_share: float


@dataclass
class Part:
    """An alignment set up in a :class:`SpatialForcing`: its tap, target, loss and schedule.

    Attributes:
        alignment: its record.
        name: of the alignment.
        target: the source of its features.
        tap: the tap at its site; alignments at one site share it.
        recommended_layer: the host's.
        loss: the function.
        schedule: the weight, or what gives it at every step.
    """

    alignment: Alignment
    name: str
    target: Target
    tap: Tap | MixedTap
    recommended_layer: int
    loss: Loss = field(init=False)
    schedule: float | Schedule = field(init=False)

    def __post_init__(self) -> None:
        self.loss, self.schedule = loss_of(self.alignment.loss), schedule_of(self.alignment.weight)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the target's features."""
        layer = self.alignment.layer
        return self.target.fingerprint if layer is None else self.target.fingerprint_of(layer)

    @property
    def projector_name(self) -> str:
        """Name of the alignment whose projector this one uses: its own, or the one that it shares."""
        return self.alignment.shares or self.name

    @property
    def projector_shape(self) -> tuple[Any, ...]:
        """What projectors must have in common to be one."""
        of, width = self.alignment, width_with(self.alignment.points, self.target.width)
        layers = self.tap.layers if isinstance(self.tap, MixedTap) else 1
        return self.tap.site.width, layers, width, self.target.hidden, of.norm, of.projector

    @property
    def scheduled(self) -> bool:
        """Whether the weight depends on the step."""
        return callable(self.schedule)

    @property
    def acts(self) -> bool:
        """Whether the alignment is active: its weight is not zero at every step."""
        return callable(self.schedule) or self.schedule > 0

    def new_projector(self) -> nn.Module:
        """A new projector for this alignment, on the device of its tokens."""
        layers = self.tap.layers if isinstance(self.tap, MixedTap) else 1
        width_in = self.tap.site.width // layers
        width, points = width_with(self.alignment.points, self.target.width), self.alignment.points
        if self.alignment.projector == "conv":
            projector: nn.Module = ConvProjector(width_in, width)
        else:
            # Few coefficients of wide tokens need a hidden layer as wide as the tokens.
            hidden = None if points == "alone" else self.target.hidden
            projector = Projector(width_in, width, self.alignment.norm, hidden)
        if layers > 1:
            projector = MixedProjector(projector, layers)
        return projector.to(self.tap.site.device)

    def new_grid(self) -> OnGrid:
        """A new module that resamples the target's features to the token grid."""
        of, site = self.alignment, self.tap.site
        grid = OnGrid(
            site.host,
            self.target,
            position_embedding=of.position_embedding,
            standardize=of.standardize,
            spatial_norm=of.spatial_norm,
            published=of.published,
            control=of.control,
            points=of.points,
            token_weights=of.token_weights,
        )
        return grid.to(site.device)

    def numbers(self, align: Tensor, compared: tuple[Tensor, ...], weight: float) -> dict[str, Tensor]:
        """The logs of a step, from its loss and what that compares: (projected_BNC, target_BNC, valid_BN),
        and weight_BN with weights."""
        align, valid_BN, *weights = align.detach(), *compared[2:]
        counted_BN = valid_BN & (weights[0] > 0) if weights else valid_BN
        distance = align if self.loss is cosine_distance else cosine_distance(*(t.detach() for t in compared))
        numbers = {
            "align_loss": align,
            # Where no token counts not a number, and not left out: LeRobot averages the metrics of
            # several processes by their position.
            "cosine": torch.where(counted_BN.any(), 1 - distance, torch.nan),
            "valid_fraction": valid_BN.float().mean(),
        }
        return numbers | ({"align_weight": align.new_tensor(weight)} if self.scheduled else {})

    def weight_at(self, step: int) -> float:
        """The weight at a training step."""
        return weight_at(self.schedule, step)

    def describe(self, parameters: int) -> str:
        """One-line summary of what is aligned with what, and what trains."""
        site, alignment = self.tap.site, self.alignment
        about = "" if site.locate is None else "about "  # the prompt will say
        layer = "" if alignment.layer is None else f", layer {alignment.layer}"
        points = "" if alignment.points is None else f", 3D points {alignment.points}"
        points += ", tokens weighted" * (alignment.token_weights and alignment.control != "place")
        loss = "" if alignment.loss == "cosine" else f"; loss {_called(alignment.loss)}"
        return (
            f"{site.host} {site.label} ({about}{site.layout.tokens} visual tokens, width {site.width}) -> "
            f"teacher width {self.target.width}{layer}{points}; projector {parameters:,} parameters{loss}; "
            f"weight {alignment.weight}" + (f"; control: {alignment.control}" if alignment.control else "")
        ) + "".join(f"; {words}" for words in variants_of(alignment))


def variants_of(alignment: Alignment) -> list[str]:
    """What an alignment does otherwise than the paper's objective, in words, for logs; and which of its
    options do nothing."""
    embedding, unused = alignment.position_embedding, unused_in(alignment)
    features = alignment.control != "place" and alignment.points != "alone"
    found = {
        "features standardised": features and alignment.standardize is not None,
        "features standardised over each view's tokens": features and alignment.spatial_norm,
        f"position embedding {embedding:g}": features and embedding != Alignment.position_embedding,
        f"projector {alignment.projector}": alignment.projector != Alignment.projector,
        f"{alignment.norm} norm": alignment.norm != Alignment.norm,
        f"projector of {alignment.shares}": alignment.shares is not None,
        f"{alignment.hidden_share:g} of its hidden units": alignment.hidden_share != Alignment.hidden_share,
        "numerics of the public code": alignment.published,
        f"without effect on this target: {', '.join(unused)}": unused,
    }
    return [words for words, holds in found.items() if holds]


def unused_in(alignment: Alignment) -> list[str]:
    """Options of an alignment that were given and do nothing: what concerns features, in the control of the
    place and with points alone, which have none. They are no error: a control has the options of its arm."""
    place = alignment.control == "place"
    if not place and alignment.points != "alone":
        return []
    given = {
        "spatial_norm": place and alignment.spatial_norm,  # an error with points alone
        "position_embedding": alignment.position_embedding != Alignment.position_embedding,
        "token_weights": place and alignment.token_weights,
    }
    return [name for name, was in given.items() if was]


def parts_of(host: Host, alignments: Sequence[Alignment]) -> tuple[Part, ...]:
    """Sets up alignments in a host; those at one site share a tap, those of one target a pass through it.

    Raises:
        TapError: the host has no such site.
        SpatialForcingError: not a list of alignments, an empty one, or two of one name.
    """
    for one in alignments:
        if not isinstance(one, Alignment):
            raise SpatialForcingError(
                f"A list of alignments holds spatial_forcing.Alignment records; got {type(one).__name__}."
            )
    if not alignments:
        raise SpatialForcingError("A list of alignments holds at least one; this one is empty.")
    sites = [[host.site_at()] if one.site is None else sites_named(host, one.site) for one in alignments]
    of_site = [name_of(together) for together in sites]
    names = [
        one.name or name.replace(".", "_").replace("+", "-")
        for one, name in zip(alignments, of_site, strict=True)
    ]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise SpatialForcingError(
            f"Two alignments are called {', '.join(twice)} (one without a name is called after its site). "
            "Give them names: Alignment(..., name=...)."
        )
    taps = {name: tap_at(together) for name, together in dict(zip(of_site, sites, strict=True)).items()}
    targets = {id(one.target): target_of(one.target) for one in alignments}
    parts = tuple(
        Part(one, name, targets[id(one.target)], taps[site], host.default_layer)
        for one, name, site in zip(alignments, names, of_site, strict=True)
    )
    check_shared({part.name: part for part in parts})
    return parts


def check_shared(parts: Mapping[str, Part]) -> None:
    """Checks that projectors are shared by alignments that fit them.

    Raises:
        UnknownNameError: an alignment shares that of one which is not in the list.
        SpatialForcingError: that one shares another's, or widths, norm or kind differ.
    """
    for part in parts.values():
        if (name := part.alignment.shares) is None:
            continue
        owner = parts.get(name)
        if owner is part:
            raise SpatialForcingError(
                f"The alignment {name!r} shares its own projector: leave shares out there, or name another."
            )
        if owner is None:
            raise UnknownNameError("alignment to share a projector with", name, parts)
        if owner.alignment.shares is not None or owner.projector_shape != part.projector_shape:
            raise SpatialForcingError(
                f"The alignment {part.name!r} shares the projector of {name!r}, which must be its own and of "
                "the same host width, target width, norm and kind: "
                f"{part.projector_shape} here, {owner.projector_shape} there."
            )


@torch.no_grad()
def features_of(parts: Sequence[Part], given: Mapping[str, Given]) -> dict[str, Features]:
    """Features for every alignment, by its name; a target runs once per batch of images."""
    found: dict[str, Features] = {}
    asking: dict[tuple[int, int], list[Part]] = {}
    for part in parts:
        images = given[part.name].images
        if isinstance(images, Features):
            found[part.name] = images.checked()
        else:
            asking.setdefault((id(part.target), id(images)), []).append(part)
    for together in asking.values():
        first = together[0]
        layers = [part.alignment.layer for part in together]
        by_layer = ask(first.target, given[first.name].images, layers)  # type: ignore[arg-type]
        found |= {part.name: by_layer[part.alignment.layer] for part in together}
    return found


def _called(thing: Any) -> str:
    """Display name of a loss."""
    return thing if isinstance(thing, str) else getattr(thing, "__name__", type(thing).__name__)
