"""Forced policies train on videos and on demonstrations of Meta-World, and act there."""

import pytest
from small_dataset import make_dataset
from small_policies import small_config, small_parts
from small_training import train

from spatial_forcing.rollouts import roll_out
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.sim.collect import DemoSpec, collect
from spatial_forcing.sim.env import SimEnvConfig
from spatial_forcing.train import checkpoints, read_metrics


def test_videos_train(folder, tmp_path):
    data = make_dataset(tmp_path / "videos", episodes=2, frames=4, size=(64, 96), videos=True)
    assert list(data.glob("videos/**/*.mp4"))
    run = train("smolvla", small_config("smolvla", folder, forcing={}), data, tmp_path / "run", steps=2)
    rows = read_metrics(run)
    assert len(rows) == 2
    assert all(0 < row["align_loss"] < 2 for row in rows)


@pytest.mark.parametrize("kind", ["smolvla", "act"])
def test_a_forced_checkpoint_acts_in_meta_world(folder, tmp_path, kind):
    demos = collect(DemoSpec(episodes=2, frames=4, size=64), tmp_path / "demos", workers=1)
    run = train(kind, small_config(kind, folder, forcing={}), demos, tmp_path / "run", steps=2)
    with small_parts(kind):
        loaded = LoadedPolicy(checkpoints(run)[2])
    assert type(loaded.policy).__module__ == f"lerobot.policies.{kind}.modeling_{kind}"
    env = SimEnvConfig(task="reach-v3", size=64, max_steps=3)
    done = roll_out(loaded, env, episodes=2, seed=1_000_000).episodes
    assert [(one.seed, one.steps) for one in done] == [(1_000_000, 3), (1_000_001, 3)]
    assert all(one.final_distance > 0 for one in done)
