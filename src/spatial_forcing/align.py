"""Spatial Forcing (arXiv 2510.12276): pull a policy's visual tokens toward a frozen 3D teacher's features.

    L = L_action + w * L_align,     L_align = mean over valid tokens of 1 - cos(P(x), y)

x: visual tokens of the host after an intermediate block; P: a small projector, thrown away after training;
y: the teacher's features of the same pictures plus a sinusoidal position embedding, resampled to the host's
token grid.

Shapes: B batch, V views, H W rows and columns of a grid, N = V*h*w visual tokens of the host, D width of the
host, C width of the teacher.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.control import CONTROLS, of_another_frame, place_embedding
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.grid import Features, compose, resample
from spatial_forcing.ranges import check_numbers, checked_statistics
from spatial_forcing.tap import Host, Tap, TapError
from spatial_forcing.uv import uv_position_embedding

# Height and width of the pictures: of all views alike, or of each.
PictureSize = tuple[int, int] | Sequence[tuple[int, int]]


class Projector(nn.Module):
    """P: norm -> Linear(D, hidden) -> GELU -> Linear(hidden, C).

    Args:
        width_in: D, width of the host.
        width_out: C, width of the teacher.
        norm: ``"layer"`` as in the published code (default), ``"batch"`` as in the paper (statistics over the
            valid tokens).
        hidden: width between the two layers; C, as published, if None.
    """

    def __init__(
        self,
        width_in: int,
        width_out: int,
        norm: Literal["layer", "batch"] = "layer",
        hidden: int | None = None,
    ):
        super().__init__()
        if norm not in ("layer", "batch"):
            raise SpatialForcingError(f"The projector's norm is 'layer' or 'batch', got {norm!r}.")
        hidden = width_out if hidden is None else hidden
        if min(width_in, width_out, hidden) < 1:
            raise SpatialForcingError(
                f"The projector's widths must be at least 1, got {width_in}, {hidden} and {width_out}."
            )
        self.norm = nn.LayerNorm(width_in) if norm == "layer" else nn.BatchNorm1d(width_in)
        self.fc1 = nn.Linear(width_in, hidden)
        self.fc2 = nn.Linear(hidden, width_out)

    def forward(self, visual_BND: Tensor, valid_BN: Tensor) -> Tensor:
        """Projects visual_BND to projected_BNC. Tokens that are not valid get no gradient, change nothing."""
        # Hosts often run in bfloat16; the projector keeps its own precision.
        x = torch.where(valid_BN[..., None], visual_BND, 0.0).to(self.fc1.weight.dtype)
        if isinstance(self.norm, nn.BatchNorm1d):
            x = x.masked_scatter(valid_BN[..., None], self._batch_norm(self.norm, x[valid_BN]))
        else:
            x = self.norm(x)
        return self.fc2(F.gelu(self.fc1(x)))

    @staticmethod
    def _batch_norm(norm: nn.BatchNorm1d, x_ND: Tensor) -> Tensor:
        if norm.training and len(x_ND) < 2:
            # One valid token has no variance, none has no mean: the running statistics serve, unchanged.
            statistics = norm.running_mean, norm.running_var
            return F.batch_norm(x_ND, *statistics, norm.weight, norm.bias, eps=norm.eps)
        return norm(x_ND)


def cosine_distance(projected_BNC: Tensor, target_BNC: Tensor, valid_BN: Tensor) -> Tensor:
    """L_align = mean over valid tokens of 1 - cos(projected, target), in [0, 2].

    Computed in float32. Zero if and only if every valid pair is parallel (or none is valid); invariant to
    either side's scale.
    """
    if projected_BNC.shape != target_BNC.shape or valid_BN.shape != target_BNC.shape[:-1]:
        shapes = ", ".join(str(tuple(t.shape)) for t in (projected_BNC, target_BNC, valid_BN))
        raise SpatialForcingError(f"Projected, target and mask must have one shape (B, N, C), got {shapes}.")
    projected = torch.where(valid_BN[..., None], projected_BNC.float(), 1.0)
    target = torch.where(valid_BN[..., None], target_BNC.float(), 1.0)
    distance_BN = 1 - F.cosine_similarity(projected, target, dim=-1)
    return torch.where(valid_BN, distance_BN, 0.0).sum() / valid_BN.sum().clamp(min=1)


class SpatialForcing(nn.Module):
    """The alignment loss of one host and one teacher; its parameters are the projector's.

        sf = SpatialForcing(host_of(vla), teacher=load_teacher("vggt-1b"), weight=0.5)
        optimizer.add_param_group({"params": sf.parameters()})
        with sf.watch():
            loss = action_loss(vla, batch)
        loss = loss + sf(images)

    The host is tapped from construction to :meth:`detach`; its class, state dict and outputs stay as they
    are. The teacher is frozen and not registered: it is neither saved nor trained.

    With several processes the projector's gradients must be averaged as the host's are: put host and
    SpatialForcing into one module before wrapping it in DDP, as the LeRobot plug-in does.

    Args:
        host: from ``host_of(model)``, or your own record.
        teacher: anything with ``width`` that maps images_BV3HW to :class:`Features`; a feature cache serves
            too, and then ``sf`` takes the cached Features.
        weight: w, finite, 0 or more. Zero turns the loss off and leaves everything else running.
        depth: blocks before the tap; the host's recommended depth if None.
        norm: the projector's norm, ``"layer"`` or ``"batch"``.
        position_embedding: how much sinusoidal UV embedding is added to the teacher's tokens, 0 to 1, in
            units of their root mean square, so that it weighs the same for every teacher; 0 for none. The
            published code adds it in absolute units (``published=True``).
        standardize: (mean_C, std_C) of the teacher's features over a data set, finite. Removes what all its
            tokens share, which a cosine would reward for nothing; usually ``teacher.stats``.
        published: the public code's numerics: corner-aligned resampling without antialiasing, absolute
            position embedding. It knows no padding, so for hosts that pad use the default.
        control: a target without the teacher's content, for comparisons: ``"shuffled"`` or ``"place"``, see
            ``spatial_forcing.control``.

    Raises:
        SpatialForcingError: a number out of its range, a norm that does not exist, or statistics that do not
            fit the teacher.
        TapError: no such depth.
    """

    teacher: Any
    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self,
        host: Host,
        teacher: Any,
        weight: float = 0.5,
        *,
        depth: int | None = None,
        norm: Literal["layer", "batch"] = "layer",
        position_embedding: float = 0.1,
        standardize: tuple[Tensor, Tensor] | None = None,
        published: bool = False,
        control: Literal["shuffled", "place"] | None = None,
    ):
        super().__init__()
        if not isinstance(host, Host):
            raise SpatialForcingError(f"The host is a Host, from host_of(model); got {type(host).__name__}.")
        if not isinstance(getattr(teacher, "width", None), Integral):
            raise SpatialForcingError(
                "The teacher is a model, from load_teacher(name), or a FeatureStore: something that has a "
                f"width; got {teacher!r}."
            )
        if control is not None and control not in CONTROLS:
            raise UnknownNameError("control", control, CONTROLS)
        check_numbers(weight, position_embedding)
        if (position_embedding or control == "place") and teacher.width % 4:
            raise SpatialForcingError(
                f"A position embedding needs features whose width is a multiple of 4; these are "
                f"{teacher.width} wide. Use position_embedding=0 (and no control of the place), or another "
                "number of components."
            )
        self.host, self.weight = host, weight
        self.position_embedding, self.published, self.control = position_embedding, published, control
        # Around nn.Module's registration: the teacher must not end up in checkpoints, optimizers or .train().
        object.__setattr__(self, "teacher", teacher)
        # Few coefficients of wide tokens need a hidden layer as wide as the tokens.
        self.projector = Projector(host.width, teacher.width, norm, getattr(teacher, "hidden", None))
        if standardize is None:
            standardize = torch.zeros(teacher.width), torch.ones(teacher.width)
        mean_C, std_C = checked_statistics(*standardize, teacher.width)
        self.register_buffer("mean_C", mean_C.float(), persistent=False)
        self.register_buffer("std_C", std_C.float().clamp(min=1e-6), persistent=False)
        self.tap = Tap(host, depth)
        # The projector works where the tokens it reads are.
        if (beside := next(host.blocks[self.tap.depth - 1].parameters(), None)) is not None:
            self.to(beside.device)
        self.logs: dict[str, Tensor] = {}
        self._seen_several = False  # frames in a batch
        self._looked_at_features = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Watches the host's forward inside the ``with`` block; the first one counts if there are several."""
        with self.tap.watch():
            yield

    def forward(
        self,
        images: Tensor | Features,
        affine_BV23: Tensor | None = None,
        *,
        picture_hw: PictureSize | None = None,
        present_BV: Tensor | None = None,
        views: Sequence[int] | None = None,
    ) -> Tensor:
        """w * L_align for the watched forward.

        Args:
            images: images_BV3HW in [0, 1], views in the host's order, for the teacher to look at; or Features
                from a cache. Fewer views than the host has: the missing ones (the last, without ``views``)
                are left out of the loss.
            affine_BV23: from the picture the host was given to the picture the teacher saw, in unit
                coordinates, where they differ (random crops, flips and rotations of the host's copy): see
                ``spatial_forcing.grid``.
            picture_hw: height and width in pixels of the picture the host was given, where ``images`` does
                not say: with Features, for a host that pads; with crops that change the aspect ratio. One
                pair, or one for each view.
            present_BV: bool, False where a sample lacks a view; all are there if None.
            views: which of the host's views ``images`` shows, in the order in which it shows them, counted
                from 0; the first ones if None. The others are left out of the loss.

        Returns:
            A scalar in float32 with gradient to the projector and the host. :attr:`logs` holds its parts,
            detached; where no token is valid the loss is 0, ``valid_fraction`` 0 and ``cosine`` NaN.

        Raises:
            TapError: the tap never fired, carries no gradient, or found tokens that do not fit the layout.
            SpatialForcingError: images or features do not fit the host or the teacher, or valid features are
                not finite. On an accelerator only the first call waits to look at the latter: see
                :meth:`check_loss`.
        """
        visual_BND = self.tap.visual_BND()
        if self.weight > 0:
            self.tap.require_gradient()
        target_BNC, valid_BN = self.target(
            images,
            affine_BV23,
            picture_hw=picture_hw,
            present_BV=present_BV,
            views=views,
            batch=visual_BND.shape[0],
        )
        align = cosine_distance(self.projector(visual_BND, valid_BN), target_BNC, valid_BN)
        if align.device.type == "cpu" or not self._looked_at_features:
            self.check_loss(align.item(), images)
            self._looked_at_features = True
        self.logs = {
            "align_loss": align.detach(),
            # Without valid tokens not a number, and not left out: LeRobot averages the metrics of several
            # processes by their position.
            "cosine": torch.where(valid_BN.any(), 1 - align.detach(), torch.nan),
            "valid_fraction": valid_BN.float().mean(),
        }
        return self.weight * align

    @torch.no_grad()
    def target(
        self,
        images: Tensor | Features,
        affine_BV23: Tensor | None = None,
        *,
        picture_hw: PictureSize | None = None,
        present_BV: Tensor | None = None,
        views: Sequence[int] | None = None,
        batch: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """target_BNC (float32) and valid_BN on the host's grid; arguments as in :meth:`forward`."""
        layout = self.tap.layout
        features = self._checked(self._features(images), batch)
        places = self._places(views, features.tokens_BVHWC.shape[1])
        if present_BV is not None:
            given = tuple(features.valid_BVHW.shape[:2])
            if present_BV.ndim != 2 or present_BV.shape[0] != given[0] or present_BV.shape[1] < given[1]:
                raise SpatialForcingError(
                    f"present_BV says of each of the {given[0]} samples which of its {given[1]} views are "
                    f"there; got a tensor of shape {tuple(present_BV.shape)}."
                )
            present = present_BV.to(features.valid_BVHW)[:, : features.valid_BVHW.shape[1], None, None]
            features = features._replace(valid_BVHW=features.valid_BVHW & present)
        if self.control == "shuffled":
            features = of_another_frame(features, allow_single=self._seen_several)
            self._seen_several |= len(features.tokens_BVHWC) > 1
        tokens = (features.tokens_BVHWC.float() - self.mean_C) / self.std_C
        features = Features(self._with_position(tokens, features.valid_BVHW), features.valid_BVHW)

        if self.published:
            target_BVhwC, valid_BVhw = resample(
                features, layout.rows, layout.cols, affine_BV23, published=True
            )
        else:
            sizes = self._picture_sizes(images, picture_hw, tokens.shape[1])
            affine = torch.stack([layout.affine_23(*size) for size in sizes])
            if affine_BV23 is not None:
                affine = compose(affine_BV23.float(), affine.to(affine_BV23.device))
            target_BVhwC, valid_BVhw = resample(
                features, layout.rows, layout.cols, affine, coverage=layout.coverage
            )
            # Padding is no part of the picture, even where the teacher saw something beyond the host's crop.
            picture_Vhw = torch.stack([layout.picture_hw(*size) for size in sizes])
            valid_BVhw = valid_BVhw & picture_Vhw.to(valid_BVhw.device)
        target_BVhwC = _placed(target_BVhwC, places, layout.views)
        if self.control == "place":
            target_BVhwC = place_embedding(*target_BVhwC.shape).to(target_BVhwC.device)
        return target_BVhwC.flatten(1, 3), _placed(valid_BVhw, places, layout.views).flatten(1)

    def check_loss(self, align_loss: float, images: Tensor | Features) -> None:
        """Raises :class:`SpatialForcingError` if an alignment loss is not finite because features are not.

        ``logs["align_loss"]`` costs nothing to check where logs are read anyway. A host that has diverged is
        no error here.

        Args:
            align_loss: the value of a step.
            images: what :meth:`forward` was given in that step.
        """
        if not math.isfinite(align_loss):
            self._features(images).check_finite()

    def gradient_ratio(self, action_loss: Tensor, align_loss: Tensor) -> Tensor:
        """|d(align) / dx| / |d(action) / dx| at the tapped residual stream: who pulls harder.

        Costs a backward pass from both losses down to the tap; call it every so many steps, before
        ``backward()``.

        Returns:
            A scalar; NaN if nothing was watched, or a loss does not depend on the tapped stream.

        Raises:
            TapError: the host checkpoints activations with ``use_reentrant=True``, where torch refuses it.
        """
        hidden = self.tap.hidden_BLD
        if hidden is None or not hidden.requires_grad:
            return torch.full((), float("nan"))
        try:
            (by_action,) = torch.autograd.grad(action_loss, hidden, retain_graph=True, allow_unused=True)
            (by_align,) = torch.autograd.grad(align_loss, hidden, retain_graph=True, allow_unused=True)
        except RuntimeError as error:
            if "use_reentrant" not in str(error):
                raise
            raise TapError(
                f"The gradient ratio of {self.host.name} cannot be measured: it checkpoints activations with "
                "use_reentrant=True, where torch computes no gradient at the tap alone. Checkpoint with "
                "use_reentrant=False, or do not measure the ratio (--policy.forcing.ratio_every=0)."
            ) from error
        if by_action is None or by_align is None:
            return torch.full((), float("nan"))
        return by_align.float().norm() / by_action.float().norm().clamp(min=1e-12)

    def detach(self) -> None:
        """Removes the tap: the host's modules and hooks are what they were. Call it when training ends."""
        self.tap.detach()

    def describe(self) -> str:
        """One line that says what is aligned with what, and what trains."""
        params = sum(p.numel() for p in self.parameters())
        about = "" if self.host.locate is None else "about "  # the prompt will say
        return (
            f"Spatial Forcing: {self.host.name} after block {self.tap.depth} of {len(self.host.blocks)} "
            f"({about}{self.host.layout.tokens} visual tokens, width {self.host.width}) -> teacher width "
            f"{self.teacher.width}; projector {params:,} parameters; weight {self.weight}"
            + (f"; control: {self.control}" if self.control else "")
        )

    def _with_position(self, tokens_BVHWC: Tensor, valid_BVHW: Tensor) -> Tensor:
        if self.position_embedding == 0:
            return tokens_BVHWC
        H, W, C = tokens_BVHWC.shape[2:]
        embedding_HWC = uv_position_embedding(H, W, C, device=tokens_BVHWC.device)
        if self.published:
            return tokens_BVHWC + self.position_embedding * embedding_HWC
        square_BVHW = torch.where(valid_BVHW, tokens_BVHWC.square().mean(-1), 0.0)
        valid_B = valid_BVHW.sum((1, 2, 3)).clamp(min=1)
        rms_B1111 = (square_BVHW.sum((1, 2, 3)) / valid_B).sqrt()[:, None, None, None, None]
        return tokens_BVHWC + self.position_embedding * rms_B1111 * embedding_HWC

    def _picture_sizes(
        self, images: Tensor | Features, picture_hw: PictureSize | None, views: int
    ) -> list[tuple[int, int]]:
        """Height and width of the host's picture of each view."""
        if picture_hw is None and isinstance(images, Features):
            picture_hw = getattr(self.teacher, "picture_hw", None)  # a cache remembers
        if picture_hw is None and isinstance(images, Features) and self.tap.layout.fit == "pad":
            raise SpatialForcingError(
                f"{self.host.name} pads its pictures, and stored features do not say what shape those had: "
                "pass sf(features, picture_hw=(height, width))."
            )
        if picture_hw is None:
            # A host that stretches does not care for the shape: that of the features' grid serves.
            grid = images.tokens_BVHWC.shape[2:4] if isinstance(images, Features) else images.shape[-2:]
            return [(int(grid[0]), int(grid[1]))] * views
        if not isinstance(picture_hw[0], Sequence):
            return [(int(picture_hw[0]), int(picture_hw[1]))] * views  # type: ignore[arg-type]
        if len(picture_hw) != views:
            raise SpatialForcingError(f"Got the picture sizes of {len(picture_hw)} views for {views} views.")
        return [(int(size[0]), int(size[1])) for size in picture_hw]  # type: ignore[index]

    def _features(self, images: Tensor | Features) -> Features:
        return images.checked() if isinstance(images, Features) else self.teacher(images)

    def _places(self, views: Sequence[int] | None, given: int) -> list[int]:
        """The host's view of each view that was given."""
        there = self.tap.layout.views
        if given > there:
            raise SpatialForcingError(
                f"Got {given} views, but {self.host.name} has tokens for {there}. Pass the host's views, in "
                "the host's order."
            )
        places = list(range(given) if views is None else views)
        if len(places) != given or len(set(places)) != given or not set(places) <= set(range(there)):
            raise SpatialForcingError(
                f"views says which of the {there} views of {self.host.name}, 0 to {there - 1}, the {given} "
                f"given are, each once; got {places}."
            )
        return places

    def _checked(self, features: Features, batch: int | None) -> Features:
        B, _, _, _, C = features.checked().tokens_BVHWC.shape
        if self.teacher.width != C:
            raise SpatialForcingError(
                f"The features are {C} wide, the teacher of this SpatialForcing is {self.teacher.width} "
                "wide: they come from another teacher or layer."
            )
        if batch is not None and batch != B:
            raise SpatialForcingError(
                f"Got pictures or features for a batch of {B}, but the watched forward had a batch of "
                f"{batch}."
            )
        return features


def _placed(part: Tensor, places: list[int], views: int) -> Tensor:
    """(B, V, ...) of some views as (B, ``views``, ...) with each in its place; zero where there is none."""
    given, none = dict(zip(places, part.unbind(1), strict=True)), torch.zeros_like(part[:, 0])
    return torch.stack([given.get(view, none) for view in range(views)], dim=1)
