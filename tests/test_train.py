"""What `spatial-forcing train` adds to LeRobot's trainer: metrics in a file, evaluation losses among them."""

from pathlib import Path

import pytest
import torch
from small_dataset import make_dataset
from training_configs import train_config

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.saved_policy import LoadedPolicy
from spatial_forcing.train import (
    METRICS,
    checkpoints,
    log_short_runs,
    logged_row,
    read_metrics,
    train_or_continue,
    truncate_metrics,
)

SMALL = {"image_size": 28, "width": 32, "depth": 4, "heads": 2, "device": "cpu", "warmup_steps": 1}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "small", episodes=3, frames=5)


def short_run(dataset, out, **options):
    policy = CLASSES["tiny"](**SMALL, forcing=ForcingConfig(teacher="untrained-tiny"))
    config = train_config(policy, dataset, out, steps=4, batch_size=4, seed=3, save_every=4, log_every=2)
    for name, value in options.items():
        setattr(config, name, value)
    return config


def test_evaluation_losses_are_rows_of_their_own(dataset, tmp_path):
    config = short_run(dataset, tmp_path / "run", eval_steps=2)
    config.dataset.eval_split = 0.3  # the last of three episodes
    rows = read_metrics(train_or_continue(config))
    assert [row["step"] for row in rows] == [2, 2, 4, 4]
    assert ["eval_loss" in row for row in rows] == [False, True, False, True]
    assert set(rows[-1]) == {"step", "eval_loss"}

    loaded = LoadedPolicy(checkpoints(tmp_path / "run")[4])
    loaded.policy.eval()
    heldout = torch.utils.data.Subset(loaded.dataset(dataset), range(10, 15))
    with torch.no_grad():
        losses = [loaded.policy.forward(batch)[0].item() for batch in loaded.batches(heldout, batch_size=4)]
    # LeRobot prints four decimals.
    assert rows[-1]["eval_loss"] == pytest.approx(sum(losses) / len(losses), abs=6e-5)


def test_a_continued_run_drops_later_evaluation_losses(tmp_path):
    path = tmp_path / METRICS
    path.write_text('{"step": 2, "loss": 1}\n{"step": 2, "eval_loss": 1}\n{"step": 4, "eval_loss": 2}\n')
    truncate_metrics(path, 2)
    assert read_metrics(tmp_path) == [{"step": 2, "loss": 1}, {"step": 2, "eval_loss": 1}]


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew_and_other_folders_are_kept(
    dataset, tmp_path, monkeypatch
):
    begun: list[Path] = []
    monkeypatch.setattr("spatial_forcing.train.train_policy", lambda config: begun.append(config.output_dir))
    for names, says in (
        ((METRICS, "wandb"), None),
        (("wandb",), "files of W&B alone"),
        ((METRICS, "thesis.tex"), "not a training run of ours"),
    ):
        out = tmp_path / "-".join(names)
        for name in names:
            (out / name).mkdir(parents=True)
        if says is None:
            train_or_continue(short_run(dataset, out))
            assert not out.exists()
        else:
            with pytest.raises(SpatialForcingError, match=says):
                train_or_continue(short_run(dataset, out))
            assert {path.name for path in out.iterdir()} == {*names}
    assert len(begun) == 1


@pytest.mark.parametrize(
    ("message", "row"),
    [
        ("step 1200: eval_loss=0.0312", {"step": 1200, "eval_loss": 0.0312}),
        ("Checkpoint policy after step 2", None),
        ("the step 2: eval_loss=0.1 of before", None),
        (["step 2: eval_loss=0.1"], None),
    ],
)
def test_only_numbers_of_the_trainer_are_rows(message, row):
    assert logged_row(message) == row


@pytest.mark.parametrize(("log_freq", "now"), [(200, 4), (4, 4), (1, 1), (0, 0)])
def test_a_run_shorter_than_log_freq_is_logged_once(dataset, tmp_path, capsys, log_freq, now):
    config = short_run(dataset, tmp_path / "run", log_freq=log_freq)
    log_short_runs(config)
    assert config.log_freq == now
    assert ("logged once, after its last step" in capsys.readouterr().err) == (log_freq == 200)
