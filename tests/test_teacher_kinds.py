"""Every architecture of teachers: stored and read again, trained toward, and used in the embedded world."""

from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_teachers import SMALL_TEACHERS
from small_vla import observation, tiny_vla
from training_configs import policy_config, train_config

from spatial_forcing import SpatialForcing, host_of
from spatial_forcing.cache.extract import Extraction, extract, open_source
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.rollouts import roll_out
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.sim.collect import DemoSpec, collect
from spatial_forcing.sim.env import SimEnvConfig
from spatial_forcing.teachers import described, hf, load_teacher
from spatial_forcing.train import checkpoints, read_metrics, train_or_continue


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


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    spec = DemoSpec(episodes=2, frames=4, size=28)
    return collect(spec, tmp_path_factory.mktemp("demos") / "demos", workers=1)


@pytest.mark.system
@pytest.mark.parametrize("kind", SMALL_TEACHERS)
def test_it_trains_a_policy_that_acts_in_the_embedded_world(kind, demos, folder, tmp_path):
    """From stored features, by LeRobot's trainer; the checkpoint is a plain policy."""
    path = str(SMALL_TEACHERS[kind](folder))
    extract(demos, load_teacher(path), path, tmp_path / "cache")
    forcing = {"teacher": path, "cache": str(tmp_path / "cache")}
    sizes = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}
    how = {"steps": 2, "batch_size": 2, "seed": 0, "save_every": 2, "log_every": 1}
    run = train_or_continue(
        train_config(policy_config("tiny", forcing, **sizes), demos, tmp_path / "run", **how)
    )
    rows = read_metrics(run)
    assert [0 < row["align_loss"] < 2 for row in rows] == [True, True]
    loaded = LoadedPolicy(checkpoints(run)[2])
    assert type(loaded.policy).__name__ == "TinyPolicy"
    done = roll_out(loaded, SimEnvConfig(task="reach-v3", size=28, max_steps=2), episodes=1, seed=1_000_000)
    assert [one.steps for one in done.episodes] == [2]
