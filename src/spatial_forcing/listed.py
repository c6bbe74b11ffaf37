"""Parser of lists in a YAML or JSON file, or as JSON in a flag: alignments, arms of a comparison.

    - name: geometry
      site: blocks.12
      cache: features
    - name: early
      site: vision.-1
      teacher: dinov2-small

Errors name the line, or the entry where there are no lines.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import yaml

from spatial_forcing.errors import SpatialForcingError, UnknownNameError

_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
_WORDS |= {dict: "a mapping of options", list: "a list"}


class Listing(NamedTuple):
    """Names for messages: the flag that takes the list, and what an entry is called ("alignment")."""

    flag: str
    entry: str

    @property
    def an_entry(self) -> str:
        return f"{'an' if self.entry[0] in 'aeiou' else 'a'} {self.entry}"


class _Value(NamedTuple):
    """A value with its position in the file."""

    key: Any
    value: Any
    where: str


def entries_in(
    given: str | list[Any], listing: Listing, entry_class: type, check: Callable[[str, Any], None]
) -> list[dict[str, Any]]:
    """Parses and validates the entries of a list.

    Args:
        given: the path of a file, JSON text, or a list.
        listing: what is listed.
        entry_class: a dataclass; its fields are the keys of an entry, with their types.
        check: (key, value) -> raises :class:`SpatialForcingError` if the key cannot have the value.

    Raises:
        SpatialForcingError: with the line or the entry: no such file, no list, an unknown key, a key twice, a
            value of another type, one that is refused by ``check``, or a name twice.
    """
    types = get_type_hints(entry_class)
    types = {f.name: types[f.name] for f in fields(entry_class)}
    entries: list[dict[str, Any]] = []
    names: dict[str, str] = {}
    for where, values in _listed(given, listing):
        entry: dict[str, Any] = {}
        for key, value, at in values:
            if key not in types:
                raise SpatialForcingError(
                    f"{at}: {UnknownNameError(f'key of {listing.an_entry}', key, types)}"
                )
            entry[key] = _typed(key, value, types[key], at)
            try:
                check(key, entry[key])
            except SpatialForcingError as error:
                raise SpatialForcingError(f"{at}: {error}") from error
            if key == "name" and value in names:
                raise SpatialForcingError(f"{at}: the name {value} is taken, {names[value]}.")
            if key == "name" and value is not None:
                names[value] = at
        try:
            entry_class(**entry)
        except SpatialForcingError as error:
            raise SpatialForcingError(f"{where}: {error}") from error
        entries.append(entry)
    if not entries:
        raise SpatialForcingError(f"{listing.flag} lists no {listing.entry}. Leave it out, or name one.")
    return entries


def entries_as_written(given: str | list[Any], listing: Listing) -> list[dict[str, Any]]:
    """The entries of a list, whatever their keys and values are.

    Args:
        given: the path of a file, JSON text, or a list.
        listing: what is listed.

    Raises:
        SpatialForcingError: no such file, no list, or a key twice in an entry.
    """
    return [{value.key: value.value for value in values} for _, values in _listed(given, listing)]


def _typed(key: str, value: Any, kind: Any, at: str) -> Any:
    """Converts a value to the type of its key, or raises an error that says what was expected."""
    kinds = [get_origin(one) or one for one in (get_args(kind) if isinstance(kind, UnionType) else (kind,))]
    if float in kinds and type(value) in (int, str):
        try:
            return float(value)  # YAML takes 1e-3 for text
        except ValueError:
            pass
    if type(value) not in kinds:
        expected = " or ".join(_WORDS[one] for one in kinds if one is not NoneType)
        raise SpatialForcingError(f"{at}: {key} is {expected}; got {value!r}.")
    return value


def _listed(given: str | list[Any], listing: Listing) -> Iterator[tuple[str, list[_Value]]]:
    """(where, values) of every entry."""
    if not isinstance(given, str):
        yield from _of_list(given, listing)
        return
    if given.lstrip().startswith(("[", "{")):
        try:
            yield from _of_list(json.loads(given, object_pairs_hook=partial(_object, listing)), listing)
        except json.JSONDecodeError as error:
            raise SpatialForcingError(f"{listing.flag} is not readable JSON: {error}.") from error
        return
    path = Path(given).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise SpatialForcingError(
            f"{listing.flag} is a YAML or JSON file, or a JSON list; {given} cannot be read: "
            f"{getattr(error, 'strerror', None) or error}."
        ) from error
    yield from _of_file(path, text, listing)


def _object(listing: Listing, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON text; raises :class:`SpatialForcingError` for a key twice."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise SpatialForcingError(
                f"{listing.flag}: {listing.an_entry} says {key} twice, {found[key]!r} and {value!r}. "
                "Remove one."
            )
        found[key] = value
    return found


def _of_list(entries: Any, listing: Listing) -> Iterator[tuple[str, list[_Value]]]:
    if not isinstance(entries, list):
        raise SpatialForcingError(
            f"{listing.flag} is a list of {listing.entry}s; got {type(entries).__name__} {entries!r}."
        )
    for number, entry in enumerate(entries, 1):
        where = f"{listing.entry.capitalize()} {number} of {listing.flag}"
        if not isinstance(entry, dict):
            raise SpatialForcingError(f"{where} is a mapping of options; got {entry!r}.")
        yield where, [_Value(key, value, where) for key, value in entry.items()]


def _of_file(path: Path, text: str, listing: Listing) -> Iterator[tuple[str, list[_Value]]]:
    try:
        loader = yaml.SafeLoader(text)
        root = loader.get_single_node()
        if root is None:
            raise SpatialForcingError(f"{path} is empty; it is to be a list of {listing.entry}s.")
        if not isinstance(root, yaml.SequenceNode):
            raise SpatialForcingError(
                f"{_line(path, root)}: a list of {listing.entry}s begins with - in every entry."
            )
        for node in root.value:
            if not isinstance(node, yaml.MappingNode):
                raise SpatialForcingError(
                    f"{_line(path, node)}: {listing.an_entry} is a mapping, key: value."
                )
            _check_values(path, node, loader)
            yield (
                _line(path, node),
                [
                    _Value(key.value, loader.construct_object(value, deep=True), _line(path, key))
                    for key, value in node.value
                ],
            )
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        raise SpatialForcingError(
            f"{where}: not readable as YAML: {getattr(error, 'problem', None) or error}."
        ) from error


def _checked_keys(path: Path, node: yaml.MappingNode) -> list[tuple[yaml.ScalarNode, yaml.Node]]:
    """The keys and values of a mapping; raises unless keys are plain, and each is there once."""
    keys = set[str]()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            kind = "list" if isinstance(key, yaml.SequenceNode) else "mapping"
            raise SpatialForcingError(f"{_line(path, key)}: a key is a word; got a {kind}. Correct it.")
        if key.value in keys:
            raise SpatialForcingError(f"{_line(path, key)}: {key.value} is said twice. Remove one.")
        keys.add(key.value)
    return node.value


def _check_values(path: Path, entry: yaml.Node, loader: yaml.SafeLoader) -> None:
    """Raises :class:`SpatialForcingError` for keys and values of an entry, at any depth, that cannot be.

    YAML itself keeps the last of two keys, and takes any value with a tag, or a date, for what it says it is.
    """
    waiting, seen = [("the entry", entry)], set[int]()
    while waiting:
        name, node = waiting.pop()
        if id(node) in seen:  # an anchor, which may hold itself
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            waiting += [(key.value, value) for key, value in _checked_keys(path, node)]
        elif isinstance(node, yaml.SequenceNode):
            waiting += [(name, one) for one in node.value]
        else:
            try:
                loader.construct_object(node)
            except (AttributeError, LookupError, ValueError) as error:
                kind = node.tag.rpartition(":")[2]
                raise SpatialForcingError(
                    f"{_line(path, node)}: {name} cannot be read: {node.value!r} is no {kind}. Correct it."
                ) from error


def _line(path: Path, node: yaml.Node) -> str:
    return f"{path}, line {node.start_mark.line + 1}"
