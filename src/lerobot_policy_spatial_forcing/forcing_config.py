"""The options of Spatial Forcing in a LeRobot configuration: ``--policy.forcing.<name>``.

One alignment is configured by flat flags; several, by a list of entries with the same names: see
``spatial_forcing.listed``.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from lerobot_policy_spatial_forcing.cameras import check_cameras
from spatial_forcing.alignment import Alignment
from spatial_forcing.cache.layout import STORED
from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.control import CONTROLS
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.geometry.points import FRAMES
from spatial_forcing.guard import said_last
from spatial_forcing.listed import Listing, entries_in
from spatial_forcing.losses import loss_of
from spatial_forcing.on_grid import POINTS
from spatial_forcing.probe.depths import check_source as check_depth_source
from spatial_forcing.projector import PROJECTORS, check_norm
from spatial_forcing.ranges import check_position_embedding
from spatial_forcing.schedules import schedule_of
from spatial_forcing.teachers.base import named_dtype
from spatial_forcing.token_weights.sources import check_source

LISTING = Listing("--policy.forcing.alignments", "alignment")


@dataclass
class AlignmentConfig:
    """Options of one alignment: teacher features, site of the policy's tokens, loss and weight."""

    # Draccus takes the help of a flag from the string below its field.
    teacher: str | None = None
    """Registered teacher, or a local file or folder; the cache's if None, or vggt-1b without a cache."""
    teacher_checkpoint: str | None = None
    """Local file or folder with the named teacher's weights; packaged or from the Hub if None."""
    layer: int | None = None
    """Teacher layer to align to; negative counts from the end; the last (or the cache's) if None."""
    resolution: int | None = None
    """Side in pixels of the teacher's input images; its own (vggt-1b: 518) or the cache's if None."""
    dtype: str | None = None
    """Data type of the teacher's matrix products: bfloat16, float16 or float32; float32 (or the cache's)
    if None."""
    cache: str | None = None
    """Feature cache: folder written by spatial-forcing cache; without one the teacher runs at every step."""
    pca_targets: bool = False
    """Align to the PCA coefficients in a compressed cache instead of the decoded tokens; cosines among
    coefficients are those among tokens less their mean."""
    site: str | None = None
    """Where the policy's tokens are read: blocks.12 (after 12 blocks), vision.-1 (the end of the vision
    encoder), or blocks.6+12 (a learned mixture of both); the host's recommendation if None."""
    loss: str = "cosine"
    """Alignment loss between tokens and features: cosine, smooth_l1 or relations."""
    loss_weight: float | str = 0.5
    """Weight of the alignment loss, 0 or more; 0 is the baseline and runs the same code. Or a schedule of the
    training step: linear:initial=0.5,final=0,start=1000,end=3000 (or cosine:...)."""
    norm: str = "layer"
    """Normalisation in the projector: layer or batch."""
    projector: str = "mlp"
    """Projector: mlp, or conv (one 3 x 3 convolution over the grid of tokens, as iREPA has it)."""
    hidden_share: float = 1.0
    """Share of the projector's hidden units that are used, for projectors that several alignments share."""
    position_embedding: float = 0.1
    """Scale of the position embedding added to the target, 0 to 1."""
    standardize: bool | None = None
    """Standardise the teacher's features channel by channel (needs a cache); if None, with a cache and unless
    published."""
    spatial_norm: bool = False
    """Standardise the features of each view over its tokens, so that only how places differ is left."""
    future: int = 0
    """Align to the teacher's features so many frames ahead in the episode, or of its last frame (needs a
    cache)."""
    published: bool = False
    """Reproduce the numerics of the public code."""
    control: str | None = None
    """Control target without the teacher's content: shuffled (features of another frame) or place (the
    position embedding alone)."""
    points: str | None = None
    """How the 3D points of the tokens enter the target: added (in place of the embedding of the pixel's
    place), concatenated, or alone. Needs a cache with points (spatial-forcing points)."""
    points_from: str | None = None
    """Depth that the points are from: recorded, or pseudo:<model>; the cache's if None."""
    points_frame: str | None = None
    """Frame of the points: robot, end-effector, first-camera or camera; the cache's if None."""
    token_weights: str | None = None
    """Weights of the tokens in the loss, of a cache that has them (spatial-forcing weights): stored, or their
    source, confidence:<teacher> or mask:<column>; all count alike if None."""
    calibration: str | None = None
    """Calibration file of the cameras, for commands that write the cache; the embedded world's own if
    None."""

    def __post_init__(self) -> None:
        if self.standardize is None and not self._listed:
            self.standardize = self.cache is not None and not self.published
        with said_last():
            self._check()

    @property
    def _listed(self) -> bool:
        """Whether a list says all, and these options say nothing."""
        return False

    def _check(self) -> None:
        for option in fields(self):
            check_option(option.name, getattr(self, option.name))
        for name in ("points_from", "points_frame", "calibration"):
            if self.points is None and (value := getattr(self, name)) is not None:
                raise SpatialForcingError(
                    f"forcing.{name}={value} says which points a target has, and this one has none: give "
                    f"forcing.points ({', '.join(POINTS)}), or leave forcing.{name} out."
                )
        _alignment_with(
            projector=self.projector,
            norm=self.norm,
            points=self.points,
            position_embedding=self.position_embedding,
            spatial_norm=self.spatial_norm,
            hidden_share=self.hidden_share,
        )


@dataclass
class ListedAlignment(AlignmentConfig):
    """Options of one alignment in a list of several, with a name."""

    name: str | None = None
    """Name in logs and checkpoints; the site, with _ for the dot, if None."""
    shares: str | None = None
    """Name of another entry whose projector this one uses, too."""


@dataclass
class ForcingConfig(AlignmentConfig):
    """Spatial Forcing: a loss that aligns the policy's visual tokens with a frozen 3D teacher's features."""

    cameras: list[str] | dict[str, str] | None = None
    """Cameras to align, in the order in which the teacher sees them; all if None. With --rename_map: its
    entries for these cameras."""
    alignments: list[Any] | str | None = None
    """Several alignments instead of one: a YAML or JSON file, or a JSON list, with entries as above."""
    new_projector: bool = False
    """Start a new projector where the checkpoint's was trained for other features or another site; an error
    otherwise."""
    one_token_late: bool = False
    """Read the tokens one late, as the public code of the paper reads OpenVLA-OFT (gain_feat_1move)."""
    diagnostics_every: int = 50
    """Steps between diagnostics, 0 for never: gradient ratio and cosine (a second backward pass down to the
    tap), CKA, effective rank, cosine per view."""
    weight: Any = None
    """Renamed to loss_weight."""
    weights: Any = None
    """Renamed to teacher_checkpoint."""
    coefficients: Any = None
    """Renamed to pca_targets."""
    depth: Any = None
    """Renamed to site: site=blocks.12 for depth=12."""
    ratio_every: Any = None
    """Renamed to diagnostics_every."""

    @property
    def _listed(self) -> bool:
        return self.alignments is not None

    def _check(self) -> None:
        for name in RENAMED_FORCING:
            check_not_renamed(name, getattr(self, name))
        super()._check()
        if self.diagnostics_every < 0:
            raise SpatialForcingError(
                "forcing.diagnostics_every is the number of steps between diagnostics, 0 or more (0: none); "
                f"got {self.diagnostics_every}."
            )
        check_cameras(self.cameras)
        if self.alignments is None:
            return
        flat = [f.name for f in fields(AlignmentConfig) if getattr(self, f.name) != f.default]
        if flat:
            raise SpatialForcingError(
                f"forcing.alignments says all of its alignments, and forcing.{', forcing.'.join(flat)} "
                "says something of one: put it into the entries."
            )
        # What was in a file is kept: a run is resumed with what it began with.
        self.alignments = entries_in(self.alignments, LISTING, ListedAlignment, check_option)

    def entries(self) -> list[AlignmentConfig]:
        """The alignments: these flags, or the entries of the list."""
        if self.alignments is None:
            return [self]
        assert not isinstance(self.alignments, str)
        return [ListedAlignment(**entry) for entry in self.alignments]

    @property
    def stored(self) -> bool:
        """Whether any alignment reads a feature cache."""
        return any(entry.cache is not None for entry in self.entries())


def future_of(entries: Sequence[AlignmentConfig]) -> str:
    """What ``future`` does, in words for a log, behind an alignment's own; empty if nothing."""
    ahead = sorted({entry.future for entry in entries if entry.future and entry.control != "place"})
    said = f"; targets of {' and '.join(map(str, ahead))} frame{'s' * (ahead != [1])} ahead" if ahead else ""
    unused = any(entry.future and entry.control == "place" for entry in entries)
    return said + "; future is without effect on the control of the place" * unused


def check_not_renamed(name: str, value: Any) -> None:
    """Raises :class:`SpatialForcingError` with the new name if an earlier one has a value."""
    if name in RENAMED_FORCING and value is not None:
        new = RENAMED_FORCING[name]
        said = f"blocks.{value}" if name == "depth" else value
        raise SpatialForcingError(
            f"forcing.{name} is called forcing.{new} now: write --policy.forcing.{new}={said}. In the "
            "train_config.json of a run that was begun with the earlier name, rename it there."
        )


def _check_control(control: str | None) -> None:
    if control is not None and control not in CONTROLS:
        raise UnknownNameError("control", control, CONTROLS)


def _check_points(points: str | None) -> None:
    if points is not None and points not in POINTS:
        raise UnknownNameError("forcing.points", points, POINTS)


def _check_points_from(source: str | None) -> None:
    if source is not None:
        check_depth_source(source, "forcing.points_from")


def _check_points_frame(frame: str | None) -> None:
    if frame is not None and frame not in FRAMES:
        raise UnknownNameError("frame of points", frame, FRAMES)


def _check_token_weights(source: str | None) -> None:
    if source not in (None, STORED):
        check_source(source)


def _check_projector(projector: str) -> None:
    if projector not in PROJECTORS:
        raise UnknownNameError("projector", projector, PROJECTORS)


def _check_future(future: int) -> None:
    if not isinstance(future, int) or future < 0:
        raise SpatialForcingError(
            f"forcing.future is a number of frames ahead, 0 or more (0: the frame itself); got {future!r}."
        )


class _SomeTarget:
    """A target in place of the one that is not loaded yet."""

    width = 1


def _alignment_with(**options: Any) -> None:
    """Raises :class:`SpatialForcingError` if no ``Alignment`` can have these options."""
    Alignment(None, _SomeTarget(), **options)


CHECKS: dict[str, Any] = {
    "loss_weight": schedule_of,
    "loss": loss_of,
    "position_embedding": check_position_embedding,
    "control": _check_control,
    "points": _check_points,
    "points_from": _check_points_from,
    "points_frame": _check_points_frame,
    "token_weights": _check_token_weights,
    "projector": _check_projector,
    "norm": check_norm,
    "future": _check_future,
    "dtype": named_dtype,
    "hidden_share": lambda share: _alignment_with(hidden_share=share),
    "name": lambda name: _alignment_with(name=name),
}


def check_option(name: str, value: Any) -> None:
    """Raises :class:`SpatialForcingError` if an option of an alignment cannot have this value.

    Checks that need the policy or the teacher are made there.
    """
    if name in CHECKS:
        CHECKS[name](value)
