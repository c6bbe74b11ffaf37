"""Every architecture of teachers: stored and read again, trained toward, and an arm in the embedded world."""

import json
import sys
from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_teachers import SMALL_TEACHERS
from small_vla import observation, tiny_vla

from spatial_forcing import SpatialForcing, host_of
from spatial_forcing.cache.extract import Extraction, extract, open_source
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cli import main
from spatial_forcing.results import Results
from spatial_forcing.teachers import described, hf, load_teacher


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=2, frames=3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("teachers")


def test_there_is_a_small_one_of_every_architecture():
    """VGGT comes with this package; of the whole of SigLIP only the image half is read."""
    known = {*described.ARCHITECTURES, *hf.ARCHITECTURES, "timm"} - {"vggt", "siglip"}
    assert set(SMALL_TEACHERS) == known


@pytest.mark.parametrize("kind", SMALL_TEACHERS)
def test_stored_features_are_the_teachers_and_can_be_trained_toward(kind, dataset, folder, tmp_path):
    teacher = load_teacher(SMALL_TEACHERS[kind](folder))
    extract(dataset, teacher, kind, tmp_path / "cache")
    store, index_B = FeatureStore(tmp_path / "cache"), torch.tensor([4, 1])
    frames_of, _ = open_source(dataset, teacher, kind, Extraction())
    stored, online = store.read(index_B), teacher(frames_of(index_B.tolist()))
    assert store.source.teacher_fingerprint == teacher.fingerprint
    torch.testing.assert_close(stored.tokens_BVHWC.float(), online.tokens_BVHWC, rtol=1e-3, atol=1e-3)

    torch.manual_seed(0)
    vla = tiny_vla()
    sf = SpatialForcing(host_of(vla), teacher, weight=1.0)
    optimizer = torch.optim.AdamW([*vla.parameters(), *sf.parameters()], lr=1e-2)
    given, losses = observation(), []
    for _ in range(12):
        with sf.watch():
            vla(*given)
        loss = sf(stored)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert all(p.grad is None for p in teacher.parameters())


@pytest.mark.system
@pytest.mark.timeout(900)
def test_each_is_an_arm_in_the_embedded_world(folder, tmp_path, monkeypatch):
    def run(*words: str) -> None:
        monkeypatch.setattr(sys, "argv", ["spatial-forcing", *words])
        main()

    demos = tmp_path / "demos"
    run("collect", "--out", str(demos), "--episodes", "4", "--size", "28", "--frames", "4")
    chosen = ("da3", "mapanything", "vjepa2", "timm")
    arms = [{"name": kind, "forcing": {"teacher": str(SMALL_TEACHERS[kind](folder))}} for kind in chosen]
    (tmp_path / "arms.json").write_text(json.dumps(arms))
    out = tmp_path / "compared"
    words = ["compare", "--out", str(out), "--arms-file", str(tmp_path / "arms.json")]
    words += ["--seeds", "0", "--no-controls", "--evaluations", "1", "--episodes", "1", "--holdout", "0.25"]
    words += ["--videos", "0", "--probe", "none", "--", "--policy.type=tiny", "--policy.image_size=28"]
    words += ["--policy.width=32", "--policy.depth=4", "--policy.heads=2", "--policy.device=cpu", "--steps=2"]
    words += ["--batch_size=2", "--num_workers=0", "--log_freq=1", "--dataset.repo_id=local/demos"]
    words += [f"--dataset.root={demos}"]
    run(*words, "--env.type=sf_metaworld", "--env.task=reach-v3")
    results = Results.read(out / "results.json")
    assert {one.arm for one in results.runs} == {"plain", *chosen}
    for one in results.runs:
        assert one.finished
        assert len(one.evaluations[-1].episodes or ()) == 1
        assert one.arm == "plain" or all(row.align_loss is not None for row in one.curves)
    assert len({one.parameters for one in results.runs}) == 1, "the policy is the same without its teacher"
