"""Records by name: those of this package's modules, and those that other packages bring as entry points.

A record says everything about one host or one teacher. Ours are in the modules of one package, each with a
tuple ``RECORDS``. Another distribution names its records in its ``pyproject.toml``, the entry point called as
the record is::

    [project.entry-points."spatial_forcing.teachers"]
    my-teacher = "my_package.my_teacher:RECORD"

Making the mapping imports none of them; of other distributions only what is asked for is loaded.
"""

import logging
import pkgutil
from collections.abc import Collection, Iterator, Mapping
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

_log = logging.getLogger(__name__)


class RecordError(SpatialForcingError):
    """A record of another distribution cannot be used, or a module of this package has none."""


class Records[R](Mapping[str, R]):
    """The records of one kind, by name. Looking one up raises :class:`UnknownNameError` if there is none.

    Args:
        what: what a record is of, for messages: "host", "teacher".
        kind: class of the records.
        key: the attribute of a record that is its name.
        package: the package whose modules hold ours, every one of them but ``support``; it is also the group
            of the entry points.
        support: modules of the package that hold no records.
    """

    def __init__(self, what: str, kind: type[R], *, key: str, package: str, support: Collection[str]):
        self.what, self.kind, self.key = what, kind, key
        self.package, self.support = package, frozenset(support)
        self._records: dict[str, R] = {}
        self._elsewhere: dict[str, EntryPoint] = {}
        self._complete = False

    def __getitem__(self, name: str) -> R:
        self._find()
        if name in self._records:
            return self._records[name]
        if name not in self._elsewhere:
            raise UnknownNameError(self.what, name, self)
        self._records[name] = self._loaded(self._elsewhere[name])
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        self._find()
        yield from dict.fromkeys([*self._records, *self._elsewhere])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        """Whether there is such a name; nothing of another distribution is loaded to find out."""
        self._find()
        return name in self._records or name in self._elsewhere

    def own(self) -> dict[str, R]:
        """The records of this package alone, by name."""
        self._find()
        return {name: record for name, record in self._records.items() if name not in self._elsewhere}

    def working(self) -> dict[str, R]:
        """All records; one of another distribution that cannot be loaded is left out with a warning."""
        found = {}
        for name in self:
            try:
                found[name] = self[name]
            except RecordError as error:
                _log.warning("%s", error)
        return found

    def add(self, record: R) -> None:
        """Makes a record known in this process, in place of the one of that name if there is one."""
        self._find()
        self._records[getattr(record, self.key)] = record

    def _find(self) -> None:
        if self._complete:
            return
        for module in pkgutil.iter_modules(import_module(self.package).__path__):
            if module.name in self.support:
                continue
            path = f"{self.package}.{module.name}"
            records = getattr(import_module(path), "RECORDS", None)
            if records is None:
                raise RecordError(f"{path} has no RECORDS. A module that holds no {self.what} is support.")
            self._records |= {getattr(record, self.key): record for record in records}
        for point in entry_points(group=self.package):
            self._note(point)
        self._complete = True

    def _note(self, point: EntryPoint) -> None:
        """Takes an entry point; of two with one name the first stays."""
        known = self._elsewhere.get(point.name)
        if known is None and point.name not in self._records:
            self._elsewhere[point.name] = point
        elif known is None or known.value != point.value:
            by = "this package" if known is None else _distribution(known)
            _log.warning(
                "The %s %r of %s is left out: %s has one of that name.",
                *(self.what, point.name, _distribution(point), by),
            )

    def _loaded(self, point: EntryPoint) -> R:
        whose = f"The {self.what} {point.name!r} of {_distribution(point)} ({point.value})"
        try:
            record = point.load()
        except Exception as error:  # whatever importing somebody else's module may raise
            raise RecordError(
                f"{whose} cannot be loaded: {type(error).__name__}: {error}. Repair or remove that package."
            ) from error
        if not isinstance(record, self.kind):
            raise RecordError(
                f"{whose} is no record: expected a {self.kind.__name__}, found {type(record).__name__}."
            )
        if getattr(record, self.key) != point.name:
            raise RecordError(
                f"{whose} calls itself {getattr(record, self.key)!r}: give record and entry point one name."
            )
        return record


def _distribution(point: EntryPoint) -> str:
    return "another package" if point.dist is None else f"the package {point.dist.name}"
