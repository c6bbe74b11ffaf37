"""Registries of hosts, teachers, losses and schedules by name, including other packages' entry points.

Ours are in the modules of one package. Another distribution names its own in its ``pyproject.toml``, in a
group of entry points that is called as our package is::

    [project.entry-points."spatial_forcing.teachers"]
    my-teacher = "my_package.my_teacher:RECORD"

Making a registry imports nothing; of other distributions only what is asked for is loaded. Where two have
one name, ours stays, or else the first one found, and a warning names the other.
"""

import logging
import pkgutil
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any, override

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

_log = logging.getLogger(__name__)


class RegistryError(SpatialForcingError):
    """An entry point of another distribution is unusable, or a module of this package registers nothing."""


class Registry[T](Mapping[str, T]):
    """Registry of objects by name. Looking up an unknown name raises :class:`UnknownNameError`.

    Args:
        what: what is registered, for messages: "host", "loss".
        package: the package whose modules hold ours, every one of them but ``support``; it is also the group
            of the entry points.
        support: modules of the package that register nothing.
    """

    def __init__(self, what: str, package: str, support: Collection[str] = ()):
        self.what, self.package, self.support = what, package, frozenset(support)
        self.refresh()

    @abstractmethod
    def held_by(self, module: ModuleType) -> Mapping[str, T]:
        """What a module of this package registers, by name.

        Raises:
            AttributeError: it registers nothing.
        """

    @abstractmethod
    def check(self, name: str, found: Any) -> None:
        """Validates the object of another distribution's entry point.

        Raises:
            RegistryError: it cannot be registered; what it is and should be, to follow the words "<it> is".
        """

    def __getitem__(self, name: str) -> T:
        self._find()
        if name in self._found:
            return self._found[name]
        if name not in self._elsewhere:
            raise UnknownNameError(self.what, name, self)
        self._found[name] = self._loaded(self._elsewhere[name])
        return self._found[name]

    def __iter__(self) -> Iterator[str]:
        self._find()
        yield from dict.fromkeys([*self._found, *self._elsewhere])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Whether a name is registered; nothing of another distribution is loaded to find out."""
        self._find()
        return name in self._found or name in self._elsewhere

    def own(self) -> dict[str, T]:
        """The entries of this package alone, by name."""
        self._find()
        return {name: found for name, found in self._found.items() if name not in self._elsewhere}

    def working(self) -> dict[str, T]:
        """All loadable entries, by name; a warning names other distributions' that cannot be loaded."""
        working = {}
        for name in self:
            try:
                working[name] = self[name]
            except RegistryError as error:
                _log.warning("%s", error)
        return working

    def add(self, name: str, what: T) -> None:
        """Registers an object in this process, replacing an entry of that name."""
        self._find()
        self._found[name] = what

    def refresh(self) -> None:
        """Clears the registry, to search again, e.g. after a distribution has been installed."""
        self._found: dict[str, T] = {}
        self._elsewhere: dict[str, EntryPoint] = {}
        self._complete = False

    def _find(self) -> None:
        if self._complete:
            return
        for module in pkgutil.iter_modules(import_module(self.package).__path__):
            if module.name in self.support:
                continue
            path = f"{self.package}.{module.name}"
            ours = import_module(path)
            try:
                self._found |= self.held_by(ours)
            except AttributeError as error:
                raise RegistryError(
                    f"{path} registers no {self.what}: {error}. If it is to hold none, name it as support."
                ) from error
        for point in entry_points(group=self.package):
            self._note(point)
        self._complete = True

    def _note(self, point: EntryPoint) -> None:
        """Adds an entry point; of two with one name the first stays."""
        known = self._elsewhere.get(point.name)
        if known is None and point.name not in self._found:
            self._elsewhere[point.name] = point
        elif known is None or known.value != point.value:
            by = "this package" if known is None else _distribution(known)
            _log.warning(
                "The %s %r of %s is left out: %s has one of that name.",
                *(self.what, point.name, _distribution(point), by),
            )

    def _loaded(self, point: EntryPoint) -> T:
        whose = f"The {self.what} {point.name!r} of {_distribution(point)} ({point.value})"
        try:
            found: Any = point.load()
        except Exception as error:  # whatever importing somebody else's module may raise
            raise RegistryError(
                f"{whose} cannot be loaded: {type(error).__name__}: {error}. Repair or remove that package."
            ) from error
        try:
            self.check(point.name, found)
        except RegistryError as error:
            raise RegistryError(f"{whose} {error}") from None
        return found


class Records[R](Registry[R]):
    """Registry of records: our modules have a tuple ``RECORDS`` each; an entry point is one, of its name.

    Args:
        kind: class of the records.
        key: the attribute of a record that is its name.
    """

    def __init__(self, what: str, kind: type[R], *, key: str, package: str, support: Collection[str] = ()):
        super().__init__(what, package, support)
        self.kind, self.key = kind, key

    @override
    def held_by(self, module: ModuleType) -> Mapping[str, R]:
        return {getattr(record, self.key): record for record in module.RECORDS}

    @override
    def check(self, name: str, found: Any) -> None:
        if not isinstance(found, self.kind):
            raise RegistryError(
                f"is no record: expected a {self.kind.__name__}, found {type(found).__name__}."
            )
        if (own := getattr(found, self.key)) != name:
            raise RegistryError(f"calls itself {own!r}: give record and entry point one name.")


class Functions[F: Callable[..., Any]](Registry[F]):
    """Registry of functions: a module of ours has its function's name, and keeps it under one attribute.

    Args:
        attribute: what such a module calls its function.
    """

    def __init__(self, what: str, *, attribute: str, package: str):
        super().__init__(what, package)
        self.attribute = attribute

    @override
    def held_by(self, module: ModuleType) -> Mapping[str, F]:
        return {module.__name__.rpartition(".")[2]: getattr(module, self.attribute)}

    @override
    def check(self, name: str, found: Any) -> None:
        if not callable(found):
            raise RegistryError(f"is no function: found {type(found).__name__}.")


def _distribution(point: EntryPoint) -> str:
    return "another package" if point.dist is None else f"the package {point.dist.name}"
