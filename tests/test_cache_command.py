"""`spatial-forcing cache` and `cache verify`, as one types them."""

import json
import sys
from importlib import resources

import pytest
import torch
from small_dataset import CAMERAS, make_dataset

from spatial_forcing.cache.extract import Extraction, extract, open_source
from spatial_forcing.cache.layout import COMMAND
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cli import main
from spatial_forcing.teachers import load_teacher


def run(monkeypatch, *arguments: str) -> int:
    """Exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "cache", *arguments])
    try:
        main()
    except SystemExit as stopped:
        return int(stopped.code or 0)
    return 0


@pytest.fixture
def dataset(tmp_path):
    return make_dataset(tmp_path / "data")


def flip_a_bit(path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def test_write_verify_break_repair(monkeypatch, capsys, tmp_path, dataset):
    out = tmp_path / "features"
    options = ["--out", str(out), "--dataset", str(dataset)]
    assert run(monkeypatch, *options, "--teacher", "untrained-tiny", "--components", "24") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "15 frames of 2 views" in said
    assert "24 numbers per token; cosine of stored to raw tokens 0." in said
    assert "s per frame: about" in said

    assert run(monkeypatch, "verify", *options) == 0
    said = capsys.readouterr().out
    assert "Every file" in said
    assert "A sample computed again: mean cosine" in said

    before = (out / "shard-00000.safetensors").read_bytes()
    flip_a_bit(out / "shard-00000.safetensors")
    assert run(monkeypatch, "verify", *options) == 2
    said = capsys.readouterr()
    again = f"{COMMAND} verify --out {out} --dataset {dataset} --repair"
    assert said.err.endswith(f"Restore that one with: {again}\n")
    assert said.out.endswith("is damaged: its sum is not the one in the manifest.\n"), "no advice twice"
    assert run(monkeypatch, "verify", "--out", str(out), "--repair") == 2
    assert "of which data set" in capsys.readouterr().err
    assert run(monkeypatch, "verify", *options, "--repair") == 0
    assert (out / "shard-00000.safetensors").read_bytes() == before


def test_what_is_read_is_what_the_teacher_says_of_the_decoded_images(monkeypatch, tmp_path, dataset):
    out = tmp_path / "features"
    assert (
        run(
            monkeypatch,
            *["--out", str(out), "--dataset", str(dataset), "--teacher", "untrained-tiny", "--codec", "raw"],
            *["--cameras", CAMERAS[1], CAMERAS[0], "--grid", "4", "4", "--batch", "4"],
        )
        == 0
    )
    store = FeatureStore(out)
    assert store.source.cameras == (CAMERAS[1], CAMERAS[0])
    assert store.image_sizes == [(28, 28), (28, 28)]
    from spatial_forcing.grid import resample

    teacher = load_teacher("untrained-tiny")
    frames, _ = open_source(dataset, teacher, "untrained-tiny", Extraction(cameras=store.source.cameras))
    said = resample(teacher(frames([3, 11])), 4, 4)
    read = store.read(torch.tensor([3, 11])).tokens_BVHWC
    torch.testing.assert_close(read, said.tokens_BVHWC, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "OUT/f"], "Say which data set"),
        (["--out", "OUT/f", "--dataset", "OUT/nothing"], "nothing does not exist"),
        (["--out", "OUT/f", "--dataset", "DATA/meta"], "not a LeRobotDataset"),
        (["--out", "OUT/f", "--dataset", "DATA", "--teacher", "vgg-1b"], "vggt-1b"),
        (["--out", "OUT/f", "--dataset", "DATA", "--cameras", "observation.images.lefd"], "Did you mean"),
        (["--out", "OUT/f", "--dataset", "DATA", "--batch", "0"], "at least one frame; got 0"),
        (["--out", "OUT/f", "--dataset", "DATA", "--grid", "0", "-2"], "at least one row and one column"),
        (["--out", "OUT/f", "--dataset", "DATA", "--grid", "50", "50"], "the teacher's, which is 8 x 8"),
        (["--out", "OUT/f", "--dataset", "DATA", "--components", "9999"], "224 channels; 9999 components"),
        (["--out", "OUT/f", "--dataset", "DATA", "--decoders", "0"], "takes a thread; got 0"),
        (["--out", "OUT/f", "--dataset", "DATA", "--device", "cuda:99"], "Available: cpu"),
        (["--out", "DATA/meta/info.json/f", "--dataset", "DATA"], "info.json is not a folder"),
        (["--out", "DATA/meta/info.json", "--dataset", "DATA"], "info.json is not a folder"),
        (["verify", "--out", "OUT/f"], "no feature cache"),
    ],
)
def test_bad_input(monkeypatch, capsys, tmp_path, dataset, arguments, message):
    words = [a.replace("OUT", str(tmp_path)).replace("DATA", str(dataset)) for a in arguments]
    if words[0] != "verify" and "--teacher" not in words:
        words += ["--teacher", "untrained-tiny"]
    assert run(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "f").exists()


def test_a_teacher_has_to_be_named(monkeypatch, capsys, tmp_path, dataset):
    assert run(monkeypatch, "--out", str(tmp_path / "f"), "--dataset", str(dataset)) == 2
    assert "Say which teacher: --teacher <name>. Known: c-radio-base, " in capsys.readouterr().err


def test_the_same_folder_with_other_options_is_refused(monkeypatch, capsys, tmp_path, dataset):
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset), "--teacher", "untrained-tiny"]
    assert run(monkeypatch, *options, "--codec", "float16") == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()}
    assert run(monkeypatch, *options, "--codec", "raw") == 2
    assert "codec.kind: 'float16' there, 'raw' wanted" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "f").iterdir()} == before


def test_the_manifest_says_what_is_lost(monkeypatch, tmp_path, dataset):
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset), "--teacher", "untrained-tiny"]
    assert run(monkeypatch, *options, "--fidelity", "0.9") == 0
    report = json.loads((tmp_path / "f" / "manifest.json").read_text())["codec"]["report"]
    assert {
        "explained_variance",
        "cosine_mean",
        "cosine_worst",
        "loss_error",
        "gradient_error",
        "ratio_to_bf16",
        "curve",
    } <= report.keys()


OTHERWISE = ["--layer", "1", "--resolution", "28", "--dtype", "float16"]


def test_teacher_options_are_recorded_and_verified_with(monkeypatch, capsys, tmp_path, dataset):
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset)]
    named = [*options, "--teacher", "untrained-tiny", "--codec", "raw"]
    assert run(monkeypatch, *named, *OTHERWISE) == 0
    store = FeatureStore(tmp_path / "f")
    teacher = load_teacher("untrained-tiny", layer=1, resolution=28)
    assert store.fingerprint == teacher.fingerprint
    source = store.source
    assert (source.layer, source.layers, source.resolution, source.dtype) == (1, 4, (28, 28), "float16")

    assert run(monkeypatch, "verify", *options) == 0
    assert "A sample computed again: mean cosine" in capsys.readouterr().out
    (tmp_path / "f" / "shard-00000.safetensors").unlink()
    assert run(monkeypatch, "verify", *options, "--repair") == 0
    assert run(monkeypatch, "verify", *options, "--layer", "0") == 2
    assert "name the same --teacher, --teacher-checkpoint, --layer" in capsys.readouterr().err
    # The fingerprint does not cover the dtype, and a folder must not hold a mixture.
    assert run(monkeypatch, *named, *OTHERWISE[:-1], "float32") == 2
    assert "dtype: 'float16' there, 'float32' wanted" in capsys.readouterr().err


def test_training_options_agree_with_the_cache_or_are_refused(tmp_path, dataset):
    teacher = load_teacher("untrained-tiny", layer=1, resolution=28)
    store = FeatureStore(extract(dataset, teacher, "untrained-tiny", tmp_path / "f"))
    for agreeing in ({}, {"layer": 1}, {"layer": -3}, {"resolution": 28, "dtype": "float32"}):
        store.check_teacher_options(**ANYTHING | agreeing)
    for other, message in (
        ({"layer": 2}, "written with layer 1, and layer 2"),
        ({"layer": -1}, "written with layer 1, and layer -1"),
        ({"resolution": 56}, "resolution 56 is asked for. Leave the option out"),
        ({"dtype": "bfloat16"}, "written with dtype float32"),
    ):
        with pytest.raises(CacheError, match=message):
            store.check_teacher_options(**ANYTHING | other)


ANYTHING = {"layer": None, "resolution": None, "dtype": None}


def test_a_cache_from_before_teacher_options_were_recorded(monkeypatch, tmp_path, dataset):
    root = extract(dataset, load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "f")
    for name in ("source.json", "manifest.json"):
        saved = json.loads((root / name).read_text())
        saved.pop("checksum", None)
        for record in (saved, saved.get("claimed", {}), saved.get("source", {})):
            for option in ("layer", "layers", "resolution", "dtype"):
                record.pop(option, None)
        (root / name).write_text(json.dumps(saved))
    store = FeatureStore(root)
    assert store.source.layer is None
    with pytest.raises(CacheError, match="does not say which, and layer 3 is asked for"):
        store.check_teacher_options(**ANYTHING | {"layer": 3})
    options = ["--out", str(root), "--dataset", str(dataset)]
    assert run(monkeypatch, *options, "--teacher", "untrained-tiny", "--codec", "float16") == 0
    assert run(monkeypatch, "verify", *options) == 0


def test_several_layers_in_one_pass(monkeypatch, capsys, tmp_path, dataset):
    both, one = tmp_path / "both", tmp_path / "one"
    named = ["--dataset", str(dataset), "--teacher", "untrained-tiny", "--codec", "raw"]
    assert run(monkeypatch, *named, "--out", str(both), "--layers", "-1", "1") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "layer 1: raw, 224 numbers per token" in said
    assert "layer 3: raw, 224 numbers per token" in said
    assert run(monkeypatch, *named, "--out", str(one), "--layer", "1") == 0
    files = {path.name: path.read_bytes() for path in one.iterdir()}
    assert {path.name: path.read_bytes() for path in (both / "layer-1").iterdir()} == files
    teacher = load_teacher("untrained-tiny", layer=1)
    assert FeatureStore(both, layer=-3).fingerprint == FeatureStore(one).fingerprint == teacher.fingerprint
    assert FeatureStore(both, layer=3).fingerprint == load_teacher("untrained-tiny").fingerprint

    options = ["--out", str(both), "--dataset", str(dataset)]
    assert run(monkeypatch, "verify", *options) == 0
    said = capsys.readouterr().out
    assert "A sample of layer 1 computed again" in said
    assert "A sample of layer 3 computed again" in said
    flip_a_bit(both / "layer-1" / "shard-00000.safetensors")
    assert run(monkeypatch, "verify", "--out", str(both), "--layer", "-1") == 0
    assert run(monkeypatch, "verify", "--out", str(both)) == 2
    said = capsys.readouterr()
    assert "layer-1/shard-00000.safetensors: " in said.out
    assert "1 of the files" in said.err
    assert run(monkeypatch, "verify", *options, "--repair") == 0
    assert "Restored layer-1/shard-00000.safetensors." in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in (both / "layer-1").iterdir()} == files

    kept = (both / "layer-3" / "manifest.json").stat().st_mtime_ns
    assert run(monkeypatch, *named, "--out", str(both), "--layers", "0") == 0
    assert FeatureStore(both, layer=0).source.layer == 0
    assert (both / "layer-3" / "manifest.json").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--layer 1 --layers 1 2", "Give --layer for a cache of one layer, or --layers for several"),
        ("--layers 1 1", "Name at least one layer, and none twice; got 1, 1"),
        ("--layers 3 -1", "and none twice; got 3, -1"),
        ("--layers 1 4", "No layer 4"),
        ("--layers 1 -5", "No layer -5"),
        ("--layers one", "--layers"),
    ],
)
def test_layers_that_make_no_sense(monkeypatch, capsys, tmp_path, dataset, arguments, message):
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset), "--teacher", "untrained-tiny"]
    assert run(monkeypatch, *options, *arguments.split()) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "f").exists()


def test_layers_of_other_weights_are_not_added(monkeypatch, capsys, tmp_path, dataset):
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset), "--teacher", "untrained-tiny"]
    assert run(monkeypatch, *options, "--layers", "0") == 0
    assert run(monkeypatch, *options, "--layers", "1", "--resolution", "28") == 2
    assert "other weights, or another resolution" in " ".join(capsys.readouterr().err.split())


def test_a_teacher_in_a_file_of_ones_own(monkeypatch, capsys, tmp_path, dataset):
    packaged = resources.files("spatial_forcing.teachers") / "weights" / "vggt-tiny-sim.safetensors"
    mine = tmp_path / "mine.safetensors"
    mine.write_bytes(packaged.read_bytes())
    options = ["--out", str(tmp_path / "f"), "--dataset", str(dataset)]
    assert run(monkeypatch, *options, "--teacher", str(mine), "--resolution", "28") == 0
    assert FeatureStore(tmp_path / "f").source.teacher == str(mine)
    assert run(monkeypatch, "verify", *options) == 0
    moved = mine.rename(tmp_path / "moved.safetensors")
    assert run(monkeypatch, "verify", *options) == 2
    assert "Unknown teacher (and no file or folder)" in capsys.readouterr().err
    assert run(monkeypatch, "verify", *options, "--teacher", str(moved)) == 0
