"""The held-out error of a policy: fixed draws, steps inside the episode alone, every frame alike."""

from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from small_policies import small_config
from training_configs import train_config

from spatial_forcing.heldout import chunk_error, heldout_measures, inside_of
from spatial_forcing.saved_policy import LoadedPolicy, PolicyError
from spatial_forcing.train import checkpoints, train_or_continue


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("heldout") / "data", episodes=3, frames=6, size=(40, 60))


@pytest.fixture(scope="module")
def flow(dataset, tmp_path_factory) -> LoadedPolicy:
    """A small SmolVLA, which samples its actions from noise; trained by LeRobot for a step."""
    folder = tmp_path_factory.mktemp("smolvla")
    config = small_config("smolvla", folder, forcing=None)
    run = train_config(config, dataset, folder / "run", steps=1, batch_size=2, seed=3, save_every=1)
    return LoadedPolicy(checkpoints(train_or_continue(run))[1])


def test_a_policy_that_samples_is_measured_at_the_same_noise_every_time(flow, dataset):
    frames = flow.dataset(dataset, [1])
    torch.manual_seed(1)
    first, state = heldout_measures(flow, frames), torch.random.get_rng_state()
    torch.manual_seed(2)
    torch.randn(7)
    assert heldout_measures(flow, frames) == first
    # The draws of a training that goes on are not touched.
    torch.manual_seed(1)
    assert torch.equal(torch.random.get_rng_state(), state)
    batch = next(flow.batches(frames))
    with torch.no_grad():
        assert chunk_error(flow.policy, dict(batch)) != chunk_error(flow.policy, dict(batch))


def test_only_the_episodes_that_are_asked_for_and_evenly_spread(flow, dataset):
    whole = flow.dataset(dataset, [2, 0])
    assert len(whole) == 12
    assert {int(whole[i]["episode_index"]) for i in range(12)} == {0, 2}
    assert heldout_measures(flow, whole, most=12) == heldout_measures(flow, whole)
    assert heldout_measures(flow, whole, most=3) != heldout_measures(flow, whole)


def test_every_batch_says_that_it_goes_on_and_runs_in_the_precision_of_the_policy(flow, dataset, monkeypatch):
    went, mixed = [], []

    def noting(inner):
        def call(batch):
            mixed.append(torch.is_autocast_enabled("cpu"))
            with torch.autocast("cpu", enabled=False):  # bfloat16 takes minutes on some CPUs
                return inner(batch)

        return call

    for name in ("forward", "predict_action_chunk"):
        monkeypatch.setattr(flow.policy, name, noting(getattr(flow.policy, name)))
    for use_amp in (False, True):
        monkeypatch.setattr(flow.config, "use_amp", use_amp)
        heldout_measures(flow, flow.dataset(dataset, [1]), going=lambda: went.append(1))
        assert mixed == [use_amp] * 2
        mixed.clear()
    assert len(went) == 2, "a batch each"


class Constant:
    """A policy that always acts alike."""

    def reset(self) -> None:
        pass

    def predict_action_chunk(self, batch):
        return torch.ones(batch["observation.state"].shape[0], 5, 3)


def test_steps_after_the_end_of_an_episode_do_not_count():
    action_BTA = torch.zeros(2, 4, 2)
    action_BTA[:, 2:] = 100.0
    batch = {"action": action_BTA, "observation.state": torch.zeros(2, 1)}
    pad_BT = torch.tensor([[False, False, True, True]] * 2)
    assert chunk_error(Constant(), dict(batch, action_is_pad=pad_BT)) == 1
    assert chunk_error(Constant(), dict(batch)) == 50


def test_predicting_the_mean_is_measured_beside_it(flow, dataset):
    """On the same frames, and in the same normalised actions."""
    frames = flow.dataset(dataset, [1])
    actions = torch.cat([batch["action"][inside_of(batch)] for batch in flow.batches(frames, batch_size=1)])
    expected = (actions - actions.mean(0)).abs().mean()
    found = heldout_measures(flow, frames)
    assert found.constant_error == pytest.approx(float(expected))
    assert found.constant_error > 0.1
    # SmolVLA after one step is far from it.
    assert found.error > found.constant_error


def test_no_frames(flow, dataset):
    with pytest.raises(PolicyError, match="no held-out frame"):
        heldout_measures(flow, torch.utils.data.Subset(flow.dataset(dataset), []))
