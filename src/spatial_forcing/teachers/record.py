"""Teacher records: name, loader, weights and licence, known before a teacher is loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from spatial_forcing.errors import SpatialForcingError

# The licence of local files that do not say theirs.
UNKNOWN = "unknown"
APACHE = "https://www.apache.org/licenses/LICENSE-2.0"


@dataclass(frozen=True, kw_only=True)
class TeacherRecord:
    """Record of a teacher.

    A subclass may say more, for its own loader.

    Attributes:
        name: what `load_teacher` calls it.
        loader: "module:function", imported when a teacher is loaded, or a function. It is called as
            `loader(record, weights=..., resolution=..., layer=..., dtype=..., device=..., batch_size=...)`,
            with the arguments of `load_teacher` (`weights` a `Path` or None), and gives a `FrozenTeacher`.
        licence: SPDX identifier, or the name, of the terms of the weights.
        terms: where the terms are to be read.
        non_commercial: whether they forbid commercial use.
        gated: whether the Hub asks to accept the terms first.
        takes_weights: whether `load_teacher(name, weights=...)` makes sense.
        repo, files: on the Hub; the first of the files that exists is taken.
        packaged: file name of weights that come with this package.
        path: the local file or folder that it was named by, instead of a name.
        resolution: default resolution in pixels.
        multi_view: whether the views of a scene see each other.
        control: whether it is there to compare with.
        depth: loads it as an estimator of depth, if it is one: `depth(record, device)` gives a function from
            images_BV3HW in [0, 1] at `resolution` to depth_BVHW, an `Estimator` or another with a
            `fingerprint` of its weights.
        scene: loads it as an estimator of depth and of the cameras, if it is one: from the same images to
            (depth_BVHW, extrinsics_BV34), [R | t] from the scene to each camera; depth and t up to the scale
            of the scene.
        confidence: loads it as an estimator of how sure its depth is, if it is one: from the same images to
            confidence_BVHW, above one, larger where it is surer.
        metric: whether that depth is in metres; else it is up to the scale of the scene.
        parameters: how many are loaded for its features; None if not said.
        patch: side of a patch in pixels; None if not said.
        width, layers: of its features, and how many layers there are to choose from, for tables; None if
            not said, or if there is no choice.
        note: one sentence for a table.
    """

    name: str
    loader: str | Callable[..., Any]
    licence: str
    resolution: int
    note: str
    terms: str = APACHE
    non_commercial: bool = False
    gated: bool = False
    takes_weights: bool = True
    repo: str | None = None
    files: tuple[str, ...] = ()
    packaged: str | None = None
    path: Path | None = None
    multi_view: bool = False
    control: bool = False
    depth: Callable[..., Any] | None = None
    scene: Callable[..., Any] | None = None
    confidence: Callable[..., Any] | None = None
    metric: bool = False
    parameters: int | None = None
    patch: int | None = None
    width: int | None = None
    layers: int | None = None

    @property
    def slug(self) -> str:
        """Name for files and folders about this teacher."""
        return self.name if self.path is None else self.path.resolve().stem

    def load(self, **options: Any) -> Any:
        """Loads the teacher with the options above.

        Raises:
            SpatialForcingError: there is no such loader, or it gives something else than a `FrozenTeacher`.
        """
        from spatial_forcing.teachers.base import FrozenTeacher

        teacher = self._function()(self, **options)
        if not isinstance(teacher, FrozenTeacher):
            raise SpatialForcingError(
                f"The loader of teacher {self.name!r} gave a {type(teacher).__name__}; expected a "
                "spatial_forcing.teachers.FrozenTeacher. Subclass it."
            )
        return teacher

    def _function(self) -> Callable[..., Any]:
        if not isinstance(self.loader, str):
            return self.loader
        module, _, function = self.loader.partition(":")
        found = getattr(import_module(module), function, None) if function else None
        if found is None:
            raise SpatialForcingError(
                f"The record of teacher {self.name!r} names the loader {self.loader!r}; expected "
                f'"module:function" with a function that is there.'
            )
        return found
