"""Files and folders: written whole or not at all, created once, claimed for one job."""

import hashlib
import os
import threading

import pytest
import torch
from safetensors.torch import load_file, save_file

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import (
    check_space,
    checksum,
    claim,
    create_once,
    differences,
    remove_temporary_files,
    size_text,
    write_atomically,
    write_json,
    write_text,
)


class OurError(SpatialForcingError):
    pass


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- writing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_the_old_one_until_it_is_the_new_one(tmp_path, durable):
    path, seen = write_text(tmp_path / "note", "old"), []

    def write(temporary):
        temporary.write_text("half")
        seen.append(path.read_text())
        temporary.write_text("new")

    assert write_atomically(path, write, durable=durable) == path
    assert (seen, path.read_text(), names(tmp_path)) == (["old"], "new", ["note"])


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_writing_that_ends_early_changes_nothing(tmp_path, error):
    def write(temporary):
        temporary.write_text("half")
        raise error

    path = write_text(tmp_path / "note", "old")
    for attempt in (write_atomically, create_once):
        with pytest.raises(error):
            attempt(path, write)
    assert (path.read_text(), names(tmp_path)) == ("old", ["note"])


def test_what_cannot_be_written_is_said_in_the_callers_kind_of_error(tmp_path):
    missing, tensors = tmp_path / "nowhere" / "x", {"x": torch.zeros(2)}
    for write in (lambda t: t.write_text(""), lambda t: save_file(tensors, t)):
        for attempt in (write_atomically, create_once):
            with pytest.raises(OurError, match=r"Could not write .*nowhere/x \(.*\)\. Free some space\.$"):
                attempt(missing, write, advice="Free some space.", error=OurError)


def test_tensors_have_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "any").write_text("")
    path = write_atomically(tmp_path / "x", lambda temporary: save_file({"x": torch.arange(3)}, temporary))
    assert path.stat().st_mode == (tmp_path / "any").stat().st_mode
    assert load_file(path)["x"].tolist() == [0, 1, 2]
    assert write_json(tmp_path / "y", {"ü": [1]}).read_text() == '{\n "\\u00fc": [\n  1\n ]\n}'


def test_of_many_writers_at_once_one_creates_and_the_others_keep_it(tmp_path):
    gate, won = threading.Barrier(8), []

    def create(number: int) -> None:
        gate.wait(10)
        if create_once(tmp_path / "codec", lambda temporary: temporary.write_text(str(number) * 1000)):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len(won) == 1
    assert (tmp_path / "codec").read_text() == str(won[0]) * 1000
    assert names(tmp_path) == ["codec"]


def test_processes_of_equal_number_on_two_machines_do_not_write_one_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getpid", lambda: 17)
    seen = []

    def write(temporary):
        seen.append(temporary.name)
        temporary.write_text("x")
        if len(seen) == 1:
            write_atomically(tmp_path / "note", write)

    write_atomically(tmp_path / "note", write)
    assert len(set(seen)) == 2


def test_what_killed_writers_left_is_removed(tmp_path):
    write_text(tmp_path / "note", "")
    (tmp_path / ".note.17-abc.tmp").touch()
    remove_temporary_files(tmp_path)
    assert names(tmp_path) == ["note"]


def test_checksums_are_sha_256(tmp_path):
    assert checksum(write_text(tmp_path / "x", "abc")) == hashlib.sha256(b"abc").hexdigest()


def test_sizes_for_people():
    sizes = [size_text(n) for n in (12, 2048, 3 * 2**20, 2**31)]
    assert sizes == ["12 B", "2.0 KiB", "3.0 MiB", "2.0 GiB"]


def test_space_is_that_of_the_disk_below_a_folder_that_is_not_there_yet(tmp_path, monkeypatch):
    asked = []
    usage = type("Usage", (), {"free": 2048})
    monkeypatch.setattr("shutil.disk_usage", lambda path: asked.append(path) or usage)
    check_space(tmp_path / "a" / "b", 2048)
    with pytest.raises(OurError, match=r"a/b needs about 2\.0 KiB; 2\.0 KiB are free\. Ask for less\."):
        check_space(tmp_path / "a" / "b", 2049, "Ask for less.", OurError)
    assert asked == [tmp_path, tmp_path]


# ---- claiming ----------------------------------------------------------------------------------------------

SPEC = {"steps": 4, "spec": {"sizes": (1, 2), "seed": None}}


def test_a_claim_is_new_once_and_then_the_same(tmp_path):
    note = tmp_path / "new" / "run.json"
    assert claim(note, SPEC, what="run")
    before = note.stat().st_mtime_ns
    assert not claim(note, SPEC, what="run")
    assert (note.stat().st_mtime_ns, names(note.parent)) == (before, ["run.json"])


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (SPEC | {"steps": 5}, r"steps: 4 there, 5 wanted"),
        (
            SPEC | {"spec": {"sizes": (1, 3), "seed": 0}},
            r"spec.seed: None there, 0 wanted; spec.sizes: .* wanted",
        ),
        (SPEC | {"new": 1}, r"new: None there, 1 wanted"),
        ({"steps": 4}, r"spec: \{.*\} there, None wanted"),
    ],
)
def test_another_specification_is_refused_with_all_that_differs(tmp_path, wanted, says):
    note = tmp_path / "run.json"
    claim(note, SPEC, what="run")
    before = note.read_bytes()
    with pytest.raises(OurError, match=rf"already holds another run \({says}\)\. Nothing was changed"):
        claim(note, wanted, what="run", error=OurError)
    assert note.read_bytes() == before


def test_what_an_older_note_lacks_and_what_was_added_to_it_is_no_difference(tmp_path):
    note = write_json(tmp_path / "run.json", {"steps": 4, "complete": True})
    newer = {"steps": 4, "dtype": "float32"}
    assert not claim(note, newer, what="run", beside=("complete",), unrecorded=("dtype",))
    write_json(note, {"steps": 4, "dtype": "float16"})
    with pytest.raises(SpatialForcingError, match="dtype: 'float16' there, 'float32' wanted"):
        claim(note, {"steps": 4, "dtype": "float32"}, what="run", unrecorded=("dtype",))


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / ".lock").touch()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(SpatialForcingError, match=r"is not empty and holds no run \(no run\.json\)"):
        claim(tmp_path / "run.json", SPEC, what="run", only=True)
    assert names(tmp_path) == [".lock", "thesis.tex"]
    (tmp_path / "thesis.tex").unlink()
    assert claim(tmp_path / "run.json", SPEC, what="run", only=True)


def test_a_damaged_note_is_said_to_be(tmp_path):
    write_text(tmp_path / "run.json", "{")
    with pytest.raises(OurError, match=r"run\.json is damaged.*Choose another folder"):
        claim(tmp_path / "run.json", SPEC, what="run", error=OurError)


def test_of_lists_only_what_differs_is_told():
    there, here = {"flags": ["--a=1", "--steps=20"]}, {"flags": ["--a=1", "--steps=30"]}
    assert list(differences(there, here)) == ["flags: ['--steps=20'] there, ['--steps=30'] wanted"]
    assert list(differences({"seeds": [0]}, {"seeds": [0, 1]})) == ["seeds: [0] there, [0, 1] wanted"]
    turned = {"flags": ["--steps=20", "--a=1"]}
    assert list(differences(there, turned)) == [
        "flags: ['--a=1', '--steps=20'] there, ['--steps=20', '--a=1'] wanted"
    ]
