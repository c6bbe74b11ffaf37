"""Checkpoints of OpenVLA, teachers and feature caches are told apart; what is none of them gets an answer."""

import json
import pickle
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_checkpoints import hollow
from small_openvla import HEAD, INDEX, PROPRIO, built, change_json, write_released
from small_teachers import SMALL_TEACHERS

from spatial_forcing import teachers
from spatial_forcing.cli import main
from spatial_forcing.inspection.look import NoPathError, inspect_path
from spatial_forcing.openvla.config import PLAIN, OpenVLAConfig
from spatial_forcing.openvla.inspect import expected_shapes
from spatial_forcing.teachers.da3_teacher import BASE, blank_da3
from spatial_forcing.teachers.described import METADATA_KEY
from spatial_forcing.teachers.mapanything_teacher import blank_mapanything
from spatial_forcing.teachers.vggt_teacher import blank_vggt


def said(found) -> str:
    return "\n".join(found.problems)


# ---- OpenVLA -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def oft(tmp_path_factory) -> Path:
    return write_released(tmp_path_factory.mktemp("oft") / "checkpoint", built())


def test_a_released_checkpoint(oft):
    found = inspect_path(oft, "libero_goal_no_noops")
    assert found.loads, found.text()
    assert (found.kind, found.what) == ("openvla", "OpenVLA-OFT with an L1 head, with proprioception")
    assert found.facts["statistics"] == "libero_goal_no_noops (dataset_statistics.json)"
    assert found.facts["recommended site"] == "blocks.2 of 2 blocks"


def truncate(path: Path, by: int = 40) -> None:
    path.write_bytes(path.read_bytes()[:-by])


def unpickles(path: Path) -> None:
    """A pickle that would call something when it is read."""

    class Call:
        def __reduce__(self):
            return (pytest.fail, ("it was unpickled",))

    torch.save({"model.fc1.weight": Call()}, path)


SHARD = "model-00002-of-00003.safetensors"
BAD_OPENVLA: dict[str, tuple[Callable[[Path], object], str]] = {
    "no head": (lambda p: (p / HEAD).unlink(), "OFT's action head is missing: expected action_head--"),
    "no projector of ours": (
        lambda p: (
            (p / PROPRIO).unlink(),
            change_json(p / "config.json", lambda c: c["spatial_forcing"].update(proprio_width=8)),
        ),
        "The projector of the proprioceptive state is missing: expected proprio_projector--",
    ),
    "cut shard": (lambda p: truncate(p / SHARD), f"{SHARD} is cut off or damaged"),
    "shard that is not there": (lambda p: (p / SHARD).unlink(), f"The shard {SHARD} is missing"),
    "shard not in the index": (
        lambda p: change_json(
            p / INDEX, lambda i: i.update(weight_map={n: f for n, f in i["weight_map"].items() if f != SHARD})
        ),
        "tensor(s) missing: ",
    ),
    "pickle": (lambda p: unpickles(p / HEAD), f"{HEAD} is not a PyTorch file of plain tensors"),
    "bare pickle": (
        lambda p: (p / HEAD).write_bytes(pickle.dumps({"a": 1})),
        f"{HEAD} is not a PyTorch file of plain tensors",
    ),
    "single tower": (
        lambda p: change_json(p / "config.json", lambda c: c.update(use_fused_vision_backbone=False)),
        "single vision tower",
    ),
    "another model": (
        lambda p: change_json(p / "config.json", lambda c: c.update(model_type="openvlb")),
        "Expected model_type 'openvla' in config.json, found 'openvlb'",
    ),
}


@pytest.mark.parametrize("case", BAD_OPENVLA)
def test_bad_checkpoints_of_openvla(oft, tmp_path, case):
    damage, says = BAD_OPENVLA[case]
    path = Path(shutil.copytree(oft, tmp_path / "copy"))
    damage(path)
    found = inspect_path(path)
    assert not found.loads
    assert says in said(found)


def test_a_wrong_key_is_answered_with_those_there_are(oft):
    found = inspect_path(oft, "libero_goal")
    assert found.loads  # the key is another matter
    assert "Did you mean 'libero_goal_no_noops'? Available: libero_goal_no_noops." in found.unmet[0]
    assert "asked for          Unknown un-normalisation key 'libero_goal'" in found.text()


def test_fifteen_gigabytes_are_inspected_in_a_moment(tmp_path):
    """OpenVLA-7B at its own size, in three shards that are holes in the file system."""
    config = OpenVLAConfig(**PLAIN)
    shapes = expected_shapes(config)
    (tmp_path / "config.json").write_text(json.dumps(config.released()))
    places = {}
    for i in range(3):
        part = dict(list(shapes.items())[i::3])
        places |= dict.fromkeys(part, hollow(tmp_path / f"model-{i}.safetensors", part).name)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert sum(path.stat().st_size for path in tmp_path.glob("*.safetensors")) > 15e9
    start = time.process_time()
    found = inspect_path(tmp_path)
    assert time.process_time() - start < 10  # about half a second on an idle machine
    assert found.loads, found.text()
    assert found.what == "plain OpenVLA"
    assert found.facts["weights"].startswith("7,541,237,184 parameters in 3 shard(s)")
    assert found.facts["recommended site"] == "blocks.24 of 32 blocks"


# ---- teachers ----------------------------------------------------------------------------------------------


LICENCES = {"da3": "MIT", "mapanything": "MIT", "timm": "apache-2.0"}  # transformers' folders say none


@pytest.mark.parametrize("kind", SMALL_TEACHERS)
def test_every_kind_of_teacher(tmp_path, kind):
    path = SMALL_TEACHERS[kind](tmp_path)
    found = inspect_path(path)
    assert found.loads, found.text()
    assert found.kind == "teacher"
    assert found.facts["licence"] == LICENCES.get(kind, "unknown")
    assert found.facts["layers"] in (3, 4, 6)

    file = path if path.is_file() else path / "model.safetensors"
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    state = load_file(file)
    trunk = [name for name in sorted(state) if "head" not in name and "cam_" not in name]
    removed, reshaped = trunk[0], next(name for name in reversed(trunk) if state[name].ndim == 2)
    state[f"{removed}_renamed"] = state.pop(removed)
    state[reshaped] = state[reshaped][:, :-1].contiguous()
    save_file(state, file, metadata)
    found = inspect_path(path)
    assert not found.loads
    assert found.missing == [removed], found.text()
    assert f"{reshaped} (expected " in found.misshaped[0]


def test_the_teacher_that_comes_with_the_package():
    record = teachers.RECORDS["vggt-tiny-sim"]
    found = inspect_path(Path(teachers.__file__).parent / "weights" / str(record.packaged))
    assert found.loads, found.text()
    assert found.facts["made for"].startswith("Small VGGT trained on simulated Meta-World scenes; geometry")
    assert found.facts["licence"] == record.licence
    assert (found.facts["layers"], found.facts["resolution"]) == (record.layers, f"{record.resolution} px")


PUBLISHED = {
    "vggt-1b": (blank_vggt, ("aggregator",), None, "CC-BY-NC-4.0, no commercial use", "24"),
    "da3-base": (blank_da3, ("backbone",), BASE, "Apache-2.0", "12"),
    "mapanything": (blank_mapanything, ("trunk",), None, "Apache-2.0 (mapanything) or CC-BY", "16"),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_are_recognised_at_their_own_size(tmp_path, name):
    blank, trunk, config, licence, layers = PUBLISHED[name]
    shapes = blank(config, trunk).expected
    file = hollow(tmp_path / "model.safetensors", shapes, "F32", 4)
    (tmp_path / "config.json").write_text(json.dumps({"embed_dim": 1024}))  # theirs, which says no type
    found = inspect_path(tmp_path)
    assert found.loads, found.text()
    assert found.what.startswith(f"published weights of the teacher {name}")
    assert found.facts["licence"].startswith(licence)
    assert str(found.facts["layers"]) == layers
    assert f"--teacher {name} --teacher-checkpoint {tmp_path}" in found.notes[-1]

    first, *_ = shapes
    hollow(file, {n: s for n, s in shapes.items() if n != first} | {"odd": (2, 3)}, "F32", 4)
    found = inspect_path(file)
    assert not found.loads
    assert (found.missing, found.foreign) == ([first], ["odd"])


def test_weights_of_a_teacher_in_shards(tmp_path):
    path = SMALL_TEACHERS["dinov2"](tmp_path)
    state = load_file(path / "model.safetensors")
    (path / "model.safetensors").unlink()
    places = {}
    for i in range(2):
        part = dict(list(state.items())[i::2])
        save_file(part, path / f"model-{i}.safetensors")
        places |= dict.fromkeys(part, f"model-{i}.safetensors")
    (path / INDEX).write_text(json.dumps({"weight_map": places}))
    assert inspect_path(path).loads
    truncate(path / "model-1.safetensors")
    found = inspect_path(path)
    assert not found.loads
    assert "model-1.safetensors is cut off or damaged" in said(found)


def test_bad_teachers(tmp_path):
    cut = SMALL_TEACHERS["da3"](tmp_path)
    truncate(cut)
    assert "da3.safetensors is cut off" in said(inspect_path(cut))

    for words, says in (("{", "Expecting property name"), ('{"architecture": "vggd"}', "'vggd', which this")):
        odd = tmp_path / "odd.safetensors"
        save_file({"a": torch.zeros(1)}, odd, {METADATA_KEY: words})
        assert says in said(inspect_path(odd))

    folder = SMALL_TEACHERS["timm"](tmp_path)
    change_json(folder / "config.json", lambda c: c.update(architecture="vit_of_nobody"))
    assert "timm cannot build the model of config.json" in said(inspect_path(folder))

    folder = SMALL_TEACHERS["dinov2"](tmp_path)
    change_json(folder / "config.json", lambda c: c.update(num_attention_heads=7))
    assert "transformers cannot build the model of config.json" in said(inspect_path(folder))
    change_json(folder / "config.json", lambda c: c.update(model_type="dinov7"))
    assert "Did you mean 'dinov2'" in said(inspect_path(folder))

    pickled = tmp_path / "pickled.pt"
    unpickles(pickled)
    assert "pickled.pt is not a PyTorch file of plain tensors" in said(inspect_path(pickled))

    (tmp_path / "foreign").mkdir()
    pickled.rename(tmp_path / "foreign" / "model.pt")
    found = inspect_path(tmp_path / "foreign")
    assert "model.pt is not a PyTorch file of plain tensors: it holds _pytest.outcomes" in said(found)
    assert "which is no tensor, and was not unpickled." in said(found)
    assert "weights_only" not in found.text()


# ---- caches ------------------------------------------------------------------------------------------------


def test_a_feature_cache(cache, tmp_path):
    found = inspect_path(cache)
    assert found.loads, found.text()
    assert found.kind == "feature cache"
    assert found.facts["teacher"].startswith("untrained-tiny (fingerprint ")
    assert found.facts["frames"] == 15
    assert f"spatial-forcing cache verify --out {cache}" in found.notes[0]

    copy = Path(shutil.copytree(cache, tmp_path / "copy"))
    truncate(copy / "shard-00000.safetensors", 3)
    assert "shard-00000.safetensors is cut off" in said(inspect_path(copy))
    assert "Download" not in said(inspect_path(copy))
    repair = f"spatial-forcing cache verify --out {copy} --dataset <data set> --repair"
    assert said(inspect_path(copy)).endswith(repair)
    manifest = json.loads((copy / "manifest.json").read_text())
    others = [name for name in manifest["sums"] if name != "shard-00000.safetensors"]
    for name in others:
        (copy / name).rename(copy / f"{name}.away")
    found = said(inspect_path(copy))
    assert others
    assert all(f"{name} is " in found for name in manifest["sums"]), found
    for name in others:
        (copy / f"{name}.away").rename(copy / name)
    (copy / "shard-00000.safetensors").unlink()
    assert "shard-00000.safetensors is missing" in said(inspect_path(copy))
    (copy / "manifest.json").unlink()
    found = inspect_path(copy)
    assert "unfinished feature cache" in said(found)
    assert found.facts["teacher"] == "untrained-tiny"


# ---- none of these -----------------------------------------------------------------------------------------


def test_nothing_at_a_path_is_answered_with_what_lies_beside_it(tmp_path):
    (tmp_path / "pretrained_model").mkdir()
    with pytest.raises(NoPathError, match=r"holds pretrained_model\. Did you mean .*/pretrained_model"):
        inspect_path(tmp_path / "pretraind_model" / "x")
    with pytest.raises(NoPathError, match="is the name of a teacher"):
        inspect_path("vggt-tiny-sim")
    with pytest.raises(NoPathError, match="No file or folder a"):
        inspect_path("a\0b")
    with pytest.raises(NoPathError, match="No file or folder can be called 'xxx"):
        inspect_path("x" * 5000)


def test_what_is_none_of_these(oft, dataset, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    found = inspect_path(empty)
    assert not found.loads
    assert (found.kind, found.facts["there"]) == ("unknown", [])
    assert "there              none" in found.text()
    assert said(found) == "Expected one of what was looked for, found none."

    text = tmp_path / "notes.txt"
    text.write_text("hello")
    assert "a file of no known kind" in said(inspect_path(text))

    assert f"part of a checkpoint: spatial-forcing inspect {oft}" in said(inspect_path(oft / "config.json"))
    assert "It is a LeRobotDataset" in said(inspect_path(dataset))

    shard = oft / "model-00001-of-00003.safetensors"
    assert f"part of a checkpoint: spatial-forcing inspect {oft}" in said(inspect_path(shard))

    run = tmp_path / "run" / "checkpoints" / "000002"
    shutil.copytree(oft, run / "pretrained_model")
    assert f"Checkpoints below it: {run / 'pretrained_model'}." in inspect_path(tmp_path / "run").notes
    (run.parent / "last").symlink_to(run.name)
    found = inspect_path(tmp_path / "run")
    assert found.loads, found.text()
    assert found.path == run / "pretrained_model"
    assert found.notes[0] == f"{tmp_path / 'run'} is a training run; this is its last checkpoint."

    other = hollow(tmp_path / "other.safetensors", {"odd": (2, 3)})
    assert "not those of a teacher that is known" in said(inspect_path(other))


# ---- the command -------------------------------------------------------------------------------------------


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``spatial-forcing inspect``."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "inspect", *arguments])
    try:
        main()
        status = 0
    except SystemExit as stopped:
        status = int(stopped.code or 0)
    return status, *capsys.readouterr()


def test_the_exit_status_says_whether_it_loads(monkeypatch, capsys, oft, tmp_path):
    status, out, _ = run(monkeypatch, capsys, str(oft))
    assert status == 0
    assert out.splitlines()[-1].split() == ["loads", "yes"]
    status, out, _ = run(monkeypatch, capsys, "--json", str(oft), "--key", "libero_10")
    assert status == 1
    found = json.loads(out)
    assert found["kind"] == "openvla"
    assert (found["loads"], found["problems"]) == (True, [])
    assert "'libero_10'" in found["unmet"][0]
    status, out, error = run(monkeypatch, capsys, str(tmp_path / "none"))
    assert (status, out) == (2, "")
    assert "No file or folder" in error
    assert "Traceback" not in error
