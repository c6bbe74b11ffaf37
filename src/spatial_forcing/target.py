"""Alignment targets: a frozen teacher that maps images to features, or a store of such features.

Both are a :class:`Target`. Anything else with a ``width`` that maps images_BV3HW to Features is made one by
:func:`target_of`.

Shapes: B batch, V views, H W pixels, C channels.
"""

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features

UNKNOWN = "unknown"


class HasWidth(Protocol):
    """Protocol of a minimal target: a width, and a call that maps images_BV3HW to Features."""

    @property
    def width(self) -> int:
        """C, the number of channels of its features."""
        ...


@runtime_checkable
class Target(Protocol):
    """Protocol of an alignment target: features of a batch. Teachers and ``FeatureStore`` implement it.

    Attributes:
        name: of the teacher that the features are of.
        width: C, of every layer.
        hidden: width of the hidden layer that a projector toward it needs; ``width`` if None.
        stats: (mean_C, std_C) of the features over a data set, for standardising; None if not known.
        image_sizes: (height, width) in pixels of each view's images; None where the images themselves say.
        fingerprint: changes whenever the same batch could give other features.
        licence: SPDX identifier, or the name, of the terms of the teacher's weights.
        layer: which layer calling it gives, counted from 0; None if there is no choice, or it is not known.
    """

    name: str
    width: int
    hidden: int | None
    stats: tuple[Tensor, Tensor] | None
    image_sizes: Sequence[tuple[int, int]] | None
    fingerprint: str
    licence: str
    layer: int | None

    def __call__(self, asked: Tensor, /) -> Features:
        """Features of a batch: images_BV3HW in [0, 1] for a model, indices of frames (B,) for a store."""
        ...

    def layers_of(self, asked: Tensor, /, layers: tuple[int, ...]) -> dict[int, Features]:
        """Features of several layers of the same batch, in one pass, by layer as it was asked for."""
        ...

    def fingerprint_of(self, layer: int) -> str:
        """The fingerprint of another layer than the default one."""
        ...


class AdaptedTarget:
    """Adapter of a model with a ``width`` that maps images to Features to a :class:`Target`.

    Args:
        model: other attributes of a target are taken from it where it has them.
    """

    def __init__(self, model: Any):
        self.model = model
        self.width = int(model.width)
        self.name = str(getattr(model, "name", type(model).__name__))
        self.hidden: int | None = getattr(model, "hidden", None)
        self.stats: tuple[Tensor, Tensor] | None = getattr(model, "stats", None)
        self.image_sizes: Sequence[tuple[int, int]] | None = getattr(model, "image_sizes", None)
        self.fingerprint = str(getattr(model, "fingerprint", UNKNOWN))
        self.licence = str(getattr(model, "licence", UNKNOWN))
        self.layer: int | None = getattr(model, "layer", None)

    def __call__(self, asked: Tensor, /) -> Features:
        if isinstance(self.model, type) or not callable(self.model):
            raise SpatialForcingError(
                f"The target {self.name} does not map images to Features, it only has a width. Give it a "
                "method __call__(images_BV3HW) -> Features, or call sf(features)."
            )
        features = self.model(asked)
        if not isinstance(features, Features):
            raise SpatialForcingError(
                f"The target {self.name} must map images_BV3HW to spatial_forcing.Features; it gave "
                f"{type(features).__name__}."
            )
        return features

    def layers_of(self, asked: Tensor, /, layers: tuple[int, ...]) -> dict[int, Features]:
        several: Any = getattr(self.model, "layers_of", None)
        if several is None:
            own = "" if self.layer is None else f", layer {self.layer}"
            raise SpatialForcingError(
                f"Layers {', '.join(map(str, layers))} of the target {self.name} were asked for, and it has "
                f"the features of one layer only{own}. Leave the layer of its alignments out, or give it a "
                "method layers_of(images_BV3HW, layers) -> {layer: Features}."
            )
        return several(asked, layers)

    def fingerprint_of(self, layer: int) -> str:
        of: Any = getattr(self.model, "fingerprint_of", None)
        if of is not None:
            return str(of(layer))
        return self.fingerprint + ("" if layer == self.layer else f"-layer-{layer}")


def target_of(thing: Any) -> Target:
    """Converts a teacher, a ``FeatureStore``, or anything with a ``width`` that maps images to Features.

    Raises:
        SpatialForcingError: it has no width.
    """
    if isinstance(thing, Target) and not isinstance(thing, type):
        return thing
    width = getattr(thing, "width", None)
    if not isinstance(width, Integral):
        raise SpatialForcingError(
            "The teacher is a model, from load_teacher(name), or a FeatureStore: something that has a "
            f"width; got {thing!r}."
        )
    return AdaptedTarget(thing)


def ask(target: Target, asked: Tensor, layers: Iterable[int | None]) -> dict[int | None, Features]:
    """Computes features of some layers of a batch in one pass, by layer; None is the target's default.

    Raises:
        SpatialForcingError: the target has no such layer.
    """
    wanted = set(layers)
    if wanted <= {None, target.layer}:
        return dict.fromkeys(wanted, target(asked))
    own = target.layer
    if None in wanted and own is None:
        others = ", ".join(str(layer) for layer in wanted if layer is not None)
        raise SpatialForcingError(
            f"One alignment with the target {target.name} names no layer, and others name {others}. The "
            "target does not say which layer it gives by itself: name the layer in every one."
        )
    numbers = {layer: int(own if layer is None else layer) for layer in wanted}  # type: ignore[arg-type]
    found = target.layers_of(asked, tuple(sorted(set(numbers.values()))))
    return {layer: found[number] for layer, number in numbers.items()}
