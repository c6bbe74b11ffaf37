"""Registries: found in our modules and in entry points of installed packages, loaded when asked for."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.hosts import registry as hosts
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.registry import Records, RegistryError
from spatial_forcing.teachers import registry as teachers
from spatial_forcing.teachers.record import TeacherRecord

GROUP = "rooms_under_test"
THING = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Thing:
    name: str
    number: int = 0
"""


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def things(tmp_path, monkeypatch):
    """A package with two records and a module without any, and how another distribution is installed."""
    package = {f"{GROUP}/__init__.py": "", f"{GROUP}/thing.py": THING}
    package[f"{GROUP}/ours.py"] = (
        f"from {GROUP}.thing import Thing\nRECORDS = (Thing('one', 1), Thing('two', 2))\n"
    )
    write(tmp_path, package)
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(distribution: str, points: dict[str, str], **modules: str) -> None:
        info = f"{distribution}-1.0.dist-info"
        lines = [f"[{GROUP}]", *(f"{name} = {value}" for name, value in points.items())]
        files = {f"{name}.py": text for name, text in modules.items()}
        files |= {f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"}
        write(tmp_path, files | {f"{info}/entry_points.txt": "\n".join(lines) + "\n"})

    def records(**options) -> Records:
        from importlib import import_module

        kind = import_module(f"{GROUP}.thing").Thing
        return Records("thing", kind, **{"key": "name", "package": GROUP, "support": ("thing",)} | options)

    yield install, records
    for name in [
        name for name in sys.modules if name.partition(".")[0] == GROUP or name.startswith("other_")
    ]:
        del sys.modules[name]


OTHER = f"from {GROUP}.thing import Thing\nRECORD = Thing('three', 3)\n"


def test_records_of_ours_and_of_others(things):
    install, records = things
    install("other-things", {"three": "other_three:RECORD"}, other_three=OTHER)
    found = records()
    assert list(found) == ["one", "two", "three"]
    assert len(found) == 3
    assert "three" in found
    assert "other_three" not in sys.modules, "to list names nothing of theirs is imported"
    assert (found["one"].number, found["three"].number) == (1, 3)
    assert list(found.own()) == ["one", "two"]
    assert found.working().keys() == found.keys()
    with pytest.raises(UnknownNameError, match=r"Unknown thing 'thre'. Did you mean 'three'"):
        found["thre"]
    assert found.get("four") is None


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import nothing_of_that_name",
            r"cannot be loaded: ModuleNotFoundError.*nothing_of_that_name.*Repair",
        ),
        ("1 / 0", r"cannot be loaded: ZeroDivisionError"),
        ("", r"cannot be loaded: AttributeError"),
        ("RECORD = 3", r"is no record: expected a Thing, found int"),
        (OTHER.replace("three", "drei"), r"calls itself 'drei'"),
    ],
)
def test_a_record_of_others_that_does_not_work_is_named_and_disturbs_no_other(things, caplog, source, says):
    install, records = things
    install("other-things", {"three": "other_three:RECORD"}, other_three=source)
    found = records()
    with pytest.raises(RegistryError, match=rf"The thing 'three' of the package other-things.*{says}"):
        found["three"]
    assert found["two"].number == 2
    assert list(found.working()) == ["one", "two"]
    assert "other-things" in caplog.text


def test_of_one_name_the_first_stays_and_a_warning_names_the_other(things, caplog):
    install, records = things
    install("other-things", {"two": "other_three:RECORD", "three": "other_three:RECORD"}, other_three=OTHER)
    install("zz-things", {"three": "other_four:RECORD"}, other_four="")
    found = records()
    assert found["two"].number == 2
    assert list(found) == ["one", "two", "three"]
    assert "'two' of the package other-things is left out: this package has one" in caplog.text
    assert "The thing 'three' of the package" in caplog.text


def test_a_module_without_records_has_to_be_called_support(things):
    _, records = things
    with pytest.raises(RegistryError, match=rf"{GROUP}\.thing registers no thing: .*RECORDS.*support"):
        list(records(support=()))


def test_a_record_can_be_added_and_replaced(things):
    _, records = things
    found = records()
    found.add("five", replace(found["one"], name="five", number=5))
    found.add("one", replace(found["one"], number=11))
    assert (found["five"].number, found["one"].number, len(found)) == (5, 11, 3)
    found.refresh()
    assert (list(found), found["one"].number) == (["one", "two"], 1)


# ---- ours --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("registry", "kind"), [(hosts, PolicyRecord), (teachers, TeacherRecord)])
def test_every_module_is_support_or_holds_records(registry, kind):
    folder = Path(registry.__file__).parent
    modules = {path.stem for path in folder.glob("*.py")} - {"__init__"}
    assert set(registry.SUPPORT) <= modules
    own = registry.RECORDS.own()
    assert own
    assert all(isinstance(record, kind) for record in own.values())


def test_the_records_are_found_without_lerobot_or_transformers():
    program = (
        "import json, sys\n"
        "from spatial_forcing.hosts import RECORDS as hosts\n"
        "from spatial_forcing.teachers import RECORDS as teachers\n"
        "names = [list(hosts.own()), list(teachers.own())]\n"
        "heavy = {'lerobot', 'transformers', 'huggingface_hub', 'timm'} & set(sys.modules)\n"
        "print(json.dumps([names, sorted(heavy)]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=200,
        env=os.environ | {"PYTHONPATH": str(Path(hosts.__file__).parents[2])},
    )
    (policies, named), heavy = json.loads(done.stdout)
    assert {"smolvla", "pi0", "pi05", "act", "groot", "tiny"} <= set(policies)
    assert {"vggt-1b", "vggt-tiny-sim", "pixels", "dinov2-base"} <= set(named)
    assert heavy == []


def test_a_record_is_a_public_class():
    from spatial_forcing.hosts import PolicyRecord as host_record
    from spatial_forcing.teachers import TeacherRecord as teacher_record

    assert (host_record, teacher_record) == (PolicyRecord, TeacherRecord)
    for record in hosts.RECORDS.own().values():
        assert record.tap
        assert record.tokens
        assert record.trains
