"""Functions and classes found by name: a module of a package of ours, or an entry point of another's."""

import pkgutil
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, cast

from spatial_forcing.errors import SpatialForcingError, UnknownNameError


class Registry[T]:
    """What is found by name, imported when it is asked for.

    A module ``<package>/<name>.py`` with the attribute ``attribute`` is found as ``<name>``; so is an entry
    point ``<name>`` in the group ``group`` of any installed package.

    Args:
        kind: what is registered, for messages.
        package: the package whose modules are looked through.
        attribute: what such a module calls it.
        group: the group of entry points.
    """

    def __init__(self, kind: str, package: str, attribute: str, group: str):
        self.kind, self.package, self.attribute, self.group = kind, package, attribute, group

    def names(self) -> list[str]:
        """All names, sorted."""
        return sorted({*self._ours(), *(point.name for point in self._theirs())})

    def find(self, name: str) -> T:
        """What is registered under a name.

        Raises:
            UnknownNameError: nothing is; says what there is.
            SpatialForcingError: two packages register the name, or an entry point cannot be loaded.
        """
        points = [point for point in self._theirs() if point.name == name]
        ours = name in self._ours()
        if len(points) + ours > 1:
            packages = [*[self.package] * ours, *(str(point.value) for point in points)]
            raise SpatialForcingError(
                f"The {self.kind} {name!r} is registered {len(packages)} times: {', '.join(packages)}. "
                f"Rename one (group {self.group!r} of its package's entry points)."
            )
        if ours:
            return getattr(import_module(f"{self.package}.{name}"), self.attribute)
        if not points:
            raise UnknownNameError(self.kind, name, self.names())
        return self._loaded(points[0])

    def _ours(self) -> set[str]:
        return {module.name for module in pkgutil.iter_modules(import_module(self.package).__path__)}

    def _theirs(self) -> list[EntryPoint]:
        return list(entry_points(group=self.group))

    def _loaded(self, point: EntryPoint) -> T:
        found: Any
        try:
            found = point.load()
        except Exception as error:
            raise SpatialForcingError(
                f"The {self.kind} {point.name!r} of another package ({point.value}) cannot be loaded: "
                f"{type(error).__name__}: {error}"
            ) from error
        if not callable(found):
            raise SpatialForcingError(
                f"The {self.kind} {point.name!r} of another package ({point.value}) is to be something that "
                f"can be called; it is {found!r}."
            )
        return cast(T, found)
