"""The tables in the docs are what the records and the kept results say."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "tables.py"


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("tables", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_table_is_stale(tables):
    assert not tables.stale(), "run python scripts/tables.py"


def test_every_table_is_on_a_page_and_every_record_in_a_table(tables):
    pages = "".join((tables.ROOT / page).read_text() for page in tables.PAGES)
    kept = {tables.RESULT + path.stem.replace("-", " ") for path in tables.RESULTS.glob("*.json")}
    names = [found["name"] for found in tables.BLOCK.finditer(pages)]
    # One of an earlier step stands beside that of the end.
    assert {name for name in names if tables.AT_STEP not in name} == {*tables.TABLES, *kept}
    assert {name.partition(tables.AT_STEP)[0] for name in names} <= {*names}
    for kind in tables.hosts.RECORDS.own():
        assert f"`sf_{kind}`" in tables.host_table()
    for name, record in tables.teachers.RECORDS.own().items():
        assert f"| `{name}` | " in tables.teacher_table()
        assert record.licence in tables.teacher_table()


def test_a_changed_record_makes_a_page_stale(tables):
    page = (tables.ROOT / "README.md").read_text()
    assert tables.with_tables(page) == page
    changed = page.replace("| CC-BY-NC-4.0 |", "| MIT |")
    assert changed != page
    assert tables.with_tables(changed) == page
