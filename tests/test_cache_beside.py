"""Points and weights beside features: processes that share them, and what is said of damaged ones."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from commands import run

from spatial_forcing.cache import joined
from spatial_forcing.cache.beside import extract_beside
from spatial_forcing.cache.layout import Share
from spatial_forcing.cache.store import CacheError, FeatureStore


class Ones:
    """A source of the same number for every token."""

    name, fingerprint = "ones", "1"

    def numbers(self, batch, cameras, rows, cols):
        return torch.ones(len(batch["index"]), len(cameras), rows, cols, 1)


@pytest.fixture(scope="module")
def stored(dataset, cache, tmp_path_factory) -> Path:
    features = Path(shutil.copytree(cache, tmp_path_factory.mktemp("beside") / "features"))
    for what in ("points", "weights"):
        extract_beside(what, dataset, Ones(), features)
    return features


# ---- several processes -------------------------------------------------------------------------------------


class Loading(Exception):
    """Something is about to be loaded on a device."""


@pytest.fixture
def torchrun(monkeypatch) -> list[str]:
    """As in the second of three processes of torchrun, on a machine with GPUs; what it did is noted."""
    noted: list[str] = []
    said = {"RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(joined, "checked_device", lambda device: noted.append(f"checked {device}"))
    monkeypatch.setattr(joined, "end_with_parent", lambda: noted.append("ends with torchrun"))
    return noted


def write_points(options) -> None:
    from spatial_forcing.geometry.points_command import write_points

    write_points(SimpleNamespace(**options, depth="recorded", calibration=None, frame="robot"))


def write_weights(options) -> None:
    from spatial_forcing.token_weights.command import write_weights

    write_weights(SimpleNamespace(**options, source="mask:observation.masks", least=0.0))


def write_cache(options) -> None:
    from spatial_forcing.cache.command import write_cache
    from spatial_forcing.cache.options import Cache

    options = {name: value for name, value in options.items() if name != "features"}
    write_cache(Cache(**options, out=Path("nowhere"), teacher="untrained-tiny"))


@pytest.mark.parametrize(
    ("write", "loads"),
    [
        (write_points, "spatial_forcing.geometry.points_command.point_source"),
        (write_weights, "spatial_forcing.token_weights.command.weight_source"),
        (write_cache, "spatial_forcing.teachers.load_teacher"),
    ],
)
@pytest.mark.parametrize(("device", "own"), [("cuda", "cuda:1"), ("cuda:0", "cuda:0"), ("cpu", "cpu")])
def test_each_process_of_torchrun_works_on_its_own_gpu_and_ends_with_the_others(
    monkeypatch, torchrun, dataset, cache, write, loads, device, own
):
    def load(*args, **options):
        raise Loading(options.get("device", args[-1]))

    monkeypatch.setattr(loads, load)
    with pytest.raises(Loading, match=f"^{own}$"):
        write({"features": cache, "dataset": str(dataset), "batch": 4, "device": device})
    assert {f"checked {own}", "ends with torchrun"} == set(torchrun)


def test_a_process_that_nobody_joined_has_it_all(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(joined, "end_with_parent", lambda: pytest.fail("ends with its parent"))
    monkeypatch.setattr(joined, "checked_device", lambda device: None)
    assert joined.joined_share() == Share(0, 1)
    assert joined.own_device("cuda") == "cuda"


# ---- damage ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["points", "weights"])
@pytest.mark.parametrize("how", ["flip", "delete", "manifest"])
def test_damage_is_said_with_what_mends_it(stored, dataset, tmp_path, capsys, what, how):
    features = Path(shutil.copytree(stored, tmp_path / "features"))
    folder = features / what
    file = folder / ("manifest.json" if how == "manifest" else "shard-00000.safetensors")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)
    if how == "delete":
        file.unlink()
    again = f"again: spatial-forcing {what} --features {features} --dataset <data set> "
    advice = f"Remove {folder} (the features beside it stay), and store the {what} {again}"
    if how == "manifest":
        advice = f"Delete it and run {again.removeprefix('again: ')}"
    with pytest.raises(CacheError) as raised:
        FeatureStore(features, points=what == "points", weights=what == "weights")(torch.tensor([0]))
    assert advice in str(raised.value)
    assert "--repair" not in str(raised.value)
    for out in (features, folder):
        assert run("cache", "verify", "--out", out, "--dataset", dataset) == 2
        assert advice in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("what", ["points", "weights"])
def test_of_what_is_whole_checksums_are_verified_and_nothing_is_computed(stored, dataset, capsys, what):
    assert run("cache", "verify", "--out", stored / what, "--dataset", dataset) == 0
    said = capsys.readouterr().out
    assert f"Every file of {stored / what} matches its checksum." in said
    assert f"No sample was computed again: {stored / what} holds a cache of {what}" in said
    assert run("cache", "verify", "--out", stored / what) == 0
    assert "sample" not in capsys.readouterr().out
    assert run("cache", "verify", "--out", stored / what, "--dataset", dataset, "--repair") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"--repair is for features, and {stored / what} holds a cache of {what}. Remove" in said
    assert run("cache", "verify", "--out", stored.parent / what) == 2
    assert f"holds no cache of {what}" in " ".join(capsys.readouterr().err.split())
