"""Rollouts of saved policies: fixed episodes whatever the policy, and no memory that stays."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from small_depth import painted_dataset, saved_tiny

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.rollouts import check_fit, roll_out
from spatial_forcing.saved_policy import LoadedPolicy, PolicyError
from spatial_forcing.sim.env import SimEnvConfig


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    """A small policy that sees what the embedded world shows."""
    folder = tmp_path_factory.mktemp("policy")
    dataset = painted_dataset(folder / "set", episodes=2, frames=2)
    return saved_tiny(folder / "tiny", dataset)


def test_the_episodes_of_an_evaluation_do_not_depend_on_the_policy(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other")
    other = saved_tiny(folder / "tiny", painted_dataset(folder / "set", episodes=2, frames=2), seed=1)
    env = {"size": 28, "max_steps": 4, "look_every": 2}
    rolled = [
        roll_out(LoadedPolicy(of), SimEnvConfig(**env), episodes=2, seed=1_000_000).episodes
        for of in (checkpoint, other)
    ]
    assert [[one.seed for one in of] for of in rolled] == [[1_000_000, 1_000_001]] * 2
    assert all(0 < e.closest_distance <= e.final_distance + 1e-9 for of in rolled for e in of)
    assert [e.final_distance for e in rolled[0]] != [e.final_distance for e in rolled[1]]


def test_every_step_says_that_it_goes_on_and_runs_in_the_precision_of_the_policy(checkpoint, monkeypatch):
    loaded, went, mixed = LoadedPolicy(checkpoint), [], []
    act = loaded.policy.select_action

    def noting(batch):
        mixed.append(torch.is_autocast_enabled("cpu"))
        with torch.autocast("cpu", enabled=False):  # bfloat16 takes minutes on some CPUs
            return act(batch)

    monkeypatch.setattr(loaded.policy, "select_action", noting)
    env = SimEnvConfig(size=28, max_steps=3, look_every=2)
    for use_amp in (False, True):
        monkeypatch.setattr(loaded.config, "use_amp", use_amp)
        roll_out(loaded, env, episodes=1, seed=1_000_000, going=lambda: went.append(1))
        assert set(mixed) == {use_amp}
        assert len(went) == len(mixed)
        mixed.clear()
        went.clear()


ROLLOUTS = """
import json, re, sys
from pathlib import Path
from spatial_forcing.rollouts import roll_out
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.sim.env import SimEnvConfig

def megabytes(name):
    return int(re.search(name + r":\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024

loaded, after = LoadedPolicy(Path(sys.argv[1])), []
for _ in range(4):
    roll_out(loaded, SimEnvConfig(size=28, max_steps=2, look_every=2), episodes=10, seed=1_000_000)
    after.append(megabytes("VmRSS"))
print(json.dumps({"after": after, "peak": megabytes("VmHWM")}))
"""


@pytest.mark.system
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="other C libraries give memory back by themselves"
)
def test_a_process_does_not_grow_with_every_evaluation(checkpoint):
    """Ten environments take 200 MB, which stayed with the process."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", ROLLOUTS, str(checkpoint)],
        capture_output=True,
        text=True,
        check=True,
        timeout=280,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    open_ones = found["peak"] - found["after"][0]
    assert open_ones > 100
    assert max(found["after"]) - found["after"][0] < 0.4 * open_ones


def test_no_checkpoint_there(tmp_path):
    (tmp_path / "run" / "pretrained_model").mkdir(parents=True)
    (tmp_path / "run" / "pretrained_model" / "config.json").write_text("{}")
    with pytest.raises(SpatialForcingError, match=r"Did you mean .*pretrained_model"):
        LoadedPolicy(tmp_path / "run")


def test_a_policy_of_libero_fits_whose_state_a_processor_makes():
    """LeRobot's configuration lists the parts of that state, under names of their own."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.envs.configs import LiberoEnv
    from small_policies import features_of

    sizes = {f"observation.images.{name}": (56, 56) for name in ("image", "top")}
    config = SimpleNamespace(input_features=features_of(sizes)[0])
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    check_fit(config, LiberoEnv(), {"observation.images.image2": "observation.images.top"})
    with pytest.raises(PolicyError, match=r"observation\.images\.top is not in the environment"):
        check_fit(config, LiberoEnv(), {})
    config.output_features["action"] = PolicyFeature(FeatureType.ACTION, (4,))
    with pytest.raises(PolicyError, match=r"action is \[4\], in the environment \[7\]"):
        check_fit(config, LiberoEnv(), {"observation.images.image2": "observation.images.top"})
