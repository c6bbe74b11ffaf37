"""JSON records as pydantic classes: validated with readable errors, written atomically."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Self

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.files import read_json

try:
    from pydantic import BaseModel, ConfigDict, ValidationError
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error


class ResultsError(SpatialForcingError, ValueError):
    """A file of results lacks a value, or holds an invalid one."""


class Record(BaseModel):
    """A JSON object with checked keys.

    Keys that a class does not know are kept, so that later versions may add some.
    """

    # Strict: "12" is no number, and True is none either.
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())

    @classmethod
    def checked(cls, value: Any, name: str) -> Self:
        """Validates ``value``, plain data or a record, as a record.

        Raises:
            ResultsError: names the first key that is missing or wrong, what was expected and what was found;
                ``name`` stands for ``value`` in it.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise ResultsError(first_mistake(error, name)) from error

    @classmethod
    def read(cls, path: Path, advice: str = "") -> Self:
        """Reads a record from a JSON file.

        Args:
            path: the file.
            advice: what to do if it is damaged, as sentences.

        Raises:
            ResultsError: it cannot be read, is no JSON, or holds something else.
        """
        found = read_json(path, advice, ResultsError)
        try:
            return cls.checked(found, path.stem)
        except ResultsError as error:
            raise ResultsError(f"{path}: {error} {advice}".rstrip()) from error.__cause__

    def plain(self, **options: Any) -> dict[str, Any]:
        """Converts to plain JSON data; ``options`` as of pydantic's ``model_dump``."""
        return self.model_dump(mode="json", **options)


EXPECTED = {
    "string_type": "str",
    "int_type": "int",
    "float_type": "int or float",
    "bool_type": "bool",
    "list_type": "list",
    "dict_type": "dict",
    "model_type": "dict",
}


def first_mistake(error: ValidationError, name: str) -> str:
    """The first validation error of pydantic as a sentence: results['arms']['forced'] has no 'steps'."""
    found = error.errors()[0]
    value, kind = found["input"], found["type"]
    if kind == "missing":
        *outer, key = found["loc"]
        return f"{_place(name, outer)} has no {key!r}.{_nearest(str(key), value)}"
    where = _place(name, found["loc"])
    if kind in EXPECTED:
        return f"{where} must be {EXPECTED[kind]}, got {type(value).__name__}: {str(value)[:80]!r}."
    if kind == "literal_error":
        choices = found["ctx"]["expected"].replace("'", "").replace(" or ", ", ")  # type: ignore[typeddict-item]
        return f"{where} is {value!r}; it must be one of {choices}."
    return f"{where}: {found['msg'].removeprefix('Value error, ')}."


def _place(name: str, keys: Sequence[Any]) -> str:
    return name + "".join(f"[{key!r}]" for key in keys)


def _nearest(key: str, found: Mapping[str, Any]) -> str:
    near = get_close_matches(key, [str(name) for name in found], n=1)
    hint = f" Did you mean {near[0]!r} there?" if near else ""
    return f"{hint} It has: {', '.join(map(str, found)) or 'nothing'}."
