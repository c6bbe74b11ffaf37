"""Target y on a host's token grid: teacher features, standardised, with position embedding, resampled.

The position is the token's place in the image, as published, or the 3D point that it shows (``xyz.py``).

Shapes: B batch, V views, H W rows and columns of the teacher's grid, h w of the host's, N = V*h*w visual
tokens of the host, C width of the teacher, P channels of an embedded point.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.control import of_another_frame, place_embedding
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import Layout, compose, resample
from spatial_forcing.ranges import checked_statistics
from spatial_forcing.target import Target
from spatial_forcing.uv import uv_position_embedding
from spatial_forcing.xyz import CHANNELS, xyz_embedding

# How the points of tokens enter a target.
POINTS = ("added", "concatenated", "alone")
# Height and width of the images: of all views alike, or of each.
ImageSize = tuple[int, int] | Sequence[tuple[int, int]]


class Given(NamedTuple):
    """Inputs of an alignment for one batch, as documented in :meth:`SpatialForcing.forward`.

    Attributes:
        images: images_BV3HW in [0, 1] for a model, indices of frames for a store, or Features.
        affine_BV23, image_hw, present_BV, views: how the host saw what the teacher saw.
    """

    images: Tensor | Features
    affine_BV23: Tensor | None = None
    image_hw: ImageSize | None = None
    present_BV: Tensor | None = None
    views: Sequence[int] | None = None


class GridTarget(NamedTuple):
    """What the tokens of a host are compared with.

    Attributes:
        target_BNC: float32.
        valid_BN: which tokens count.
        weight_BN: and how much, 0 or more, float32; None if alike.
    """

    target_BNC: Tensor
    valid_BN: Tensor
    weight_BN: Tensor | None


class OnGrid(nn.Module):
    """Resamples features of one target to the token grid of one host. It has no parameters or saved state.

    Args:
        host: the host's name, for messages.
        target: what the features are of.
        position_embedding, standardize, spatial_norm, published, control, points, token_weights: as of an
            ``Alignment``.

    Attributes:
        width: of what it gives.

    Raises:
        SpatialForcingError: statistics that do not fit the target, or a width that takes no position
            embedding or no points.
    """

    mean_C: Tensor
    std_C: Tensor

    def __init__(
        self,
        host: str,
        target: Target,
        *,
        position_embedding: float,
        standardize: tuple[Tensor, Tensor] | None,
        published: bool,
        control: str | None,
        spatial_norm: bool = False,
        points: str | None = None,
        token_weights: bool = False,
    ):
        super().__init__()
        placed = control == "place" or (position_embedding and points in (None, "concatenated"))
        if placed and width_with(points, target.width) % 4:
            raise SpatialForcingError(
                f"A position embedding needs features whose width is a multiple of 4; these are "
                f"{target.width} wide. Use position_embedding=0 (and no control of the place), or another "
                "number of components."
            )
        if points == "added" and target.width < 6:
            raise SpatialForcingError(
                "points='added' embeds a point in 6 channels at least, and these features are "
                f"{target.width} wide. Use points='concatenated', or another number of components."
            )
        self.host, self.teacher_width, self.width = host, target.width, width_with(points, target.width)
        self.position_embedding, self.published, self.control = position_embedding, published, control
        self.spatial_norm, self.points = spatial_norm, points
        # The place of a token is all that the control of the place may know.
        self.token_weights = token_weights and control != "place"
        if standardize is None:
            standardize = torch.zeros(target.width), torch.ones(target.width)
        mean_C, std_C = checked_statistics(*standardize, target.width)
        self.register_buffer("mean_C", mean_C.float(), persistent=False)
        self.register_buffer("std_C", std_C.float().clamp(min=1e-6), persistent=False)
        self._seen_several = False  # frames in a batch

    @torch.no_grad()
    def forward(
        self,
        features: Features,
        given: Given,
        layout: Layout,
        *,
        stored_sizes: Sequence[tuple[int, int]] | None = None,
        batch: int | None = None,
    ) -> GridTarget:
        """Computes the target of a batch.

        Args:
            features: of the batch.
            given: how they map to the host's images.
            layout: the host's grid.
            stored_sizes: height and width of each view's images, where the target remembers them.
            batch: how many samples there are to be.

        Raises:
            SpatialForcingError: features, views, masks or sizes that do not fit.
        """
        features = self._checked(features, batch)
        view_indices = self._view_indices(given.views, features.tokens_BVHWC.shape[1], layout.views)
        features = self._of_known_points(_of_present(features, given.present_BV))
        if self.control == "shuffled":
            features = of_another_frame(features, allow_single=self._seen_several)
            self._seen_several |= len(features.tokens_BVHWC) > 1
        tokens = (features.tokens_BVHWC.float() - self.mean_C) / self.std_C
        if self.spatial_norm:
            tokens = normed_over_places(tokens, features.valid_BVHW)
        weights_BVHW = self._wanted_weights(features)
        features = self._with_position(features._replace(tokens_BVHWC=tokens))
        if weights_BVHW is not None:  # they go to the host's grid as another channel
            tokens = torch.cat([features.tokens_BVHWC, weights_BVHW[..., None]], dim=-1)
            features = features._replace(tokens_BVHWC=tokens)

        if self.published:
            if layout.fit == "pad":
                sizes = self._image_sizes(given, stored_sizes, layout, tokens.shape[1])
                self._check_unpadded(sizes, layout)
            target_BVhwC, valid_BVhw = resample(
                features, layout.rows, layout.cols, given.affine_BV23, published=True
            )
        else:
            sizes = self._image_sizes(given, stored_sizes, layout, tokens.shape[1])
            affine = torch.stack([layout.affine_23(*size) for size in sizes])
            if given.affine_BV23 is not None:
                affine = compose(given.affine_BV23.float(), affine.to(given.affine_BV23.device))
            target_BVhwC, valid_BVhw = resample(
                features, layout.rows, layout.cols, affine, coverage=layout.coverage
            )
            # Padding is no part of the image, even where the teacher saw something beyond the host's crop.
            image_Vhw = torch.stack([layout.valid_mask(*size) for size in sizes])
            valid_BVhw = valid_BVhw & image_Vhw.to(valid_BVhw.device)
        target_BVhwC = _placed(target_BVhwC, view_indices, layout.views)
        weight_BN = None
        if weights_BVHW is not None:
            target_BVhwC, weight_BN = target_BVhwC[..., :-1], target_BVhwC[..., -1].flatten(1)
        if self.control == "place":
            target_BVhwC = place_embedding(*target_BVhwC.shape).to(target_BVhwC.device)
        valid_BN = _placed(valid_BVhw, view_indices, layout.views).flatten(1)
        return GridTarget(target_BVhwC.flatten(1, 3), valid_BN, weight_BN)

    def _of_known_points(self, features: Features) -> Features:
        """Features whose tokens are valid only where their point is known, if points are wanted."""
        if self.points is None:
            return features
        known_BVHW = self._wanted_points(features).isfinite().all(-1)
        return features._replace(valid_BVHW=features.valid_BVHW & known_BVHW)

    def _check_unpadded(self, sizes: Sequence[tuple[int, int]], layout: Layout) -> None:
        """Raises for images that the host pads: the public code's resampling would stretch over the padding
        what the teacher saw without it."""
        for height, width in sizes:
            if height * layout.cols != width * layout.rows:
                raise SpatialForcingError(
                    f"{self.host} pads images of {height} x {width} (height x width) to the aspect of its "
                    f"{layout.rows} x {layout.cols} tokens, and published=True resamples as the public code "
                    "does, which knows no padding: targets would lie beside their tokens. Leave published "
                    "out, or give images of that aspect."
                )

    def _with_position(self, features: Features) -> Features:
        """Adds the position embedding to tokens_BVHWC, or what takes its place."""
        tokens_BVHWC, valid_BVHW = features
        H, W, C = tokens_BVHWC.shape[2:]
        points_BVHW3 = self._wanted_points(features)
        if self.points == "alone":
            return Features(xyz_embedding(points_BVHW3), valid_BVHW)
        if self.position_embedding:
            if self.points == "added":
                embedding = xyz_embedding(points_BVHW3, C)
            else:
                embedding = uv_position_embedding(H, W, C, device=tokens_BVHWC.device)
            size = 1.0 if self.published else rms_of(tokens_BVHWC, valid_BVHW)
            tokens_BVHWC = tokens_BVHWC + self.position_embedding * size * embedding
        if self.points == "concatenated":
            # Half of the target's length each: a sinusoid has half the square of its amplitude.
            gain = rms_of(tokens_BVHWC, valid_BVHW) * (2 * C / CHANNELS) ** 0.5
            tokens_BVHWC = torch.cat([tokens_BVHWC, gain * xyz_embedding(points_BVHW3)], dim=-1)
        return Features(tokens_BVHWC, valid_BVHW)

    def _wanted_points(self, features: Features) -> Tensor:
        """The points of the features; nothing where they are not wanted."""
        if self.points is None:
            return features.tokens_BVHWC.new_empty(0)
        if features.points_BVHW3 is not None:
            return features.points_BVHW3.to(features.tokens_BVHWC)
        raise SpatialForcingError(
            f"points={self.points!r} needs the 3D point that each token shows, and these features have none. "
            "Store them beside the features with spatial-forcing points, and read them: "
            "FeatureStore(root, points=True), or --policy.forcing.points with --policy.forcing.cache."
        )

    def _wanted_weights(self, features: Features) -> Tensor | None:
        """The weights of the features, where they are wanted; 0 where a token is not valid."""
        if not self.token_weights:
            return None
        if features.weights_BVHW is None:
            raise SpatialForcingError(
                "token_weights=True needs a weight of each token, and these features have none. Store them "
                "beside the features with spatial-forcing weights, and read them: "
                "FeatureStore(root, weights=True), or --policy.forcing.token_weights with "
                "--policy.forcing.cache."
            )
        weights_BVHW = torch.where(features.valid_BVHW, features.weights_BVHW.float(), 0.0)
        _check_weights(weights_BVHW)
        return weights_BVHW

    def _image_sizes(
        self, given: Given, stored_sizes: Sequence[tuple[int, int]] | None, layout: Layout, views: int
    ) -> list[tuple[int, int]]:
        """Height and width of the host's image for each view."""
        shown = isinstance(given.images, Tensor) and given.images.ndim == 5
        sizes: ImageSize | None = given.image_hw
        if sizes is None and not shown and stored_sizes is not None:
            # A cache remembers, of all of its views: of some of them nobody says which.
            if len(stored_sizes) == views:
                sizes = stored_sizes
            elif layout.fit == "pad":
                raise SpatialForcingError(
                    f"{self.host} pads its images, and the cache has the image sizes of {len(stored_sizes)} "
                    f"views, of which {views} are given: pass the sizes of these, "
                    "sf(features, image_hw=[(height, width), ...])."
                )
        if sizes is None and not shown and layout.fit == "pad":
            raise SpatialForcingError(
                f"{self.host} pads its images, and stored features do not say what shape those had: "
                "pass sf(features, image_hw=(height, width))."
            )
        if sizes is None:
            # A host that stretches does not care for the shape: that of its grid serves.
            grid = given.images.shape[-2:] if shown else (layout.rows, layout.cols)
            return [(int(grid[0]), int(grid[1]))] * views
        if not isinstance(sizes[0], Sequence):
            return [(int(sizes[0]), int(sizes[1]))] * views  # type: ignore[arg-type]
        if len(sizes) != views:
            raise SpatialForcingError(f"Got the image sizes of {len(sizes)} views for {views} views.")
        return [(int(size[0]), int(size[1])) for size in sizes]  # type: ignore[index]

    def _view_indices(self, views: Sequence[int] | None, given: int, there: int) -> list[int]:
        """Validated indices of the given views among the host's."""
        if given > there:
            raise SpatialForcingError(
                f"Got {given} views, but {self.host} has tokens for {there}. Pass the host's views, in "
                "the host's order."
            )
        view_indices = list(range(given) if views is None else views)
        if (
            len(view_indices) != given
            or len(set(view_indices)) != given
            or not set(view_indices) <= set(range(there))
        ):
            raise SpatialForcingError(
                f"views says which of the {there} views of {self.host}, 0 to {there - 1}, the {given} "
                f"given are, each once; got {view_indices}."
            )
        return view_indices

    def _checked(self, features: Features, batch: int | None) -> Features:
        B, _, _, _, C = features.checked().tokens_BVHWC.shape
        if self.teacher_width != C:
            raise SpatialForcingError(
                f"The features are {C} wide, the teacher of this SpatialForcing is {self.teacher_width} "
                "wide: they come from another teacher or layer."
            )
        if batch is not None and batch != B:
            raise SpatialForcingError(
                f"Got images or features for a batch of {B}, but the watched forward had a batch of {batch}."
            )
        return features


def _check_weights(weights_BVHW: Tensor) -> None:
    """Raises for weights below 0 or not a number, on the CPU: elsewhere looking would wait for the device."""
    if weights_BVHW.device.type == "cpu" and (wrong := int((~(weights_BVHW >= 0)).sum())):
        raise SpatialForcingError(
            f"The weights of tokens are 0 or more; {wrong} of these are negative or not a number."
        )


def width_with(points: str | None, width: int) -> int:
    """Width of a target from features of this width, with their points."""
    return {None: width, "added": width, "concatenated": width + CHANNELS, "alone": CHANNELS}[points]


def normed_over_places(tokens_BVHWC: Tensor, valid_BVHW: Tensor) -> Tensor:
    """Tokens with mean 0 and deviation 1 over the valid ones of each view, channel by channel."""
    valid_BVHW1 = valid_BVHW[..., None]
    count_BV111 = valid_BVHW1.sum((2, 3), keepdim=True).clamp(min=1)
    centred = torch.where(valid_BVHW1, tokens_BVHWC, 0.0)
    centred = torch.where(valid_BVHW1, centred - centred.sum((2, 3), keepdim=True) / count_BV111, 0.0)
    variance_BV11C = centred.square().sum((2, 3), keepdim=True) / count_BV111
    return centred / (variance_BV11C.sqrt() + 1e-6)


def rms_of(tokens_BVHWC: Tensor, valid_BVHW: Tensor) -> Tensor:
    """Root mean square (B, 1, 1, 1, 1) of the valid tokens of each sample."""
    square_BVHW = torch.where(valid_BVHW, tokens_BVHWC.square().mean(-1), 0.0)
    valid_B = valid_BVHW.sum((1, 2, 3)).clamp(min=1)
    return (square_BVHW.sum((1, 2, 3)) / valid_B).sqrt()[:, None, None, None, None]


def _of_present(features: Features, present_BV: Tensor | None) -> Features:
    """Masks the features of views that a sample lacks."""
    if present_BV is None:
        return features
    given = tuple(features.valid_BVHW.shape[:2])
    if present_BV.ndim != 2 or present_BV.shape[0] != given[0] or present_BV.shape[1] < given[1]:
        raise SpatialForcingError(
            f"present_BV says of each of the {given[0]} samples which of its {given[1]} views are "
            f"there; got a tensor of shape {tuple(present_BV.shape)}."
        )
    present = present_BV.to(features.valid_BVHW)[:, : given[1], None, None]
    return features._replace(valid_BVHW=features.valid_BVHW & present)


def _placed(part: Tensor, view_indices: list[int], views: int) -> Tensor:
    """Scatters (B, V, ...) of some views into (B, ``views``, ...); zero for the others."""
    given, none = dict(zip(view_indices, part.unbind(1), strict=True)), torch.zeros_like(part[:, 0])
    return torch.stack([given.get(view, none) for view in range(views)], dim=1)
