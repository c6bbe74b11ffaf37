"""Lists in files and flags: what YAML and JSON would take silently, or end with a traceback."""

from dataclasses import dataclass, field
from typing import Any

import pytest

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.listed import Listing, entries_as_written, entries_in

LISTING = Listing("--list", "alignment")


@dataclass
class Entry:
    site: str | None = None
    future: int = 0
    options: dict[str, Any] = field(default_factory=dict)


def read(given: str) -> list[dict[str, Any]]:
    return entries_in(given, LISTING, Entry, lambda key, value: None)


@pytest.mark.parametrize("reader", [read, lambda given: entries_as_written(given, LISTING)])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- site: a\n  future: 2026-99-99\n", "line 2: future cannot be read: '2026-99-99' is no timestamp"),
        ("- future: !!int many\n", "line 1: future cannot be read: 'many' is no int"),
        ("- future: !!int ''\n", "line 1: future cannot be read: '' is no int"),
        ("- future: !!bool many\n", "line 1: future cannot be read: 'many' is no bool"),
        ("- site: a\n  ? [a, b]\n  : 1\n", "line 2: a key is a word; got a list"),
        ("- site: a\n  ? {a: b}\n  : 1\n", "line 2: a key is a word; got a mapping"),
        ("- options:\n    deep: [1, {x: !!int many}]\n", "line 2: x cannot be read"),
        ("- options: {a: 1}\n- options:\n    ? [a]\n    : 1\n", "line 3: a key is a word"),
        ("- site: a\n  site: b\n", "line 2: site is said twice"),
        ("- options: {a: 1,\n    a: 2}\n", "line 2: a is said twice"),
        ("- options: &all {a: *all}\n", "line 1: not readable as YAML"),
    ],
)
def test_what_cannot_be_in_a_file_is_said_with_its_line(tmp_path, reader, text, says):
    path = tmp_path / "list.yaml"
    path.write_text(text)
    with pytest.raises(SpatialForcingError) as raised:
        reader(str(path))
    assert str(raised.value).startswith(f"{path}, {says}")


@pytest.mark.parametrize("reader", [read, lambda given: entries_as_written(given, LISTING)])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            '[{"site": "blocks.1", "site": "blocks.2"}]',
            "an alignment says site twice, 'blocks.1' and 'blocks.2'",
        ),
        ('[{"options": {"a": 1, "a": 2}}]', "an alignment says a twice, 1 and 2"),
    ],
)
def test_a_key_twice_in_json_is_an_error(reader, text, says):
    with pytest.raises(SpatialForcingError, match=f"--list: {says}"):
        reader(text)


def test_anchors_and_values_of_every_type_are_read(tmp_path):
    path = tmp_path / "list.yaml"
    path.write_text("- options: &one {a: [1, {b: 0.5}], c: null}\n- options: *one\n  future: 3\n")
    options = {"a": [1, {"b": 0.5}], "c": None}
    assert read(str(path)) == [{"options": options}, {"options": options, "future": 3}]
