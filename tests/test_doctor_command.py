"""`spatial-forcing doctor`: on a data set, with LeRobot's flags, on a checkpoint; how it completes flags."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from small_dataset import datasets_of_size, make_dataset
from small_policies import LEFT, RIGHT, SMALL, small_config, small_parts
from training_configs import train_config

from spatial_forcing.cli import main
from spatial_forcing.doctor import examine_training
from spatial_forcing.flags import read_config
from spatial_forcing.hosts.smolvla import small_smolvlm
from spatial_forcing.rehearsal import training_flags
from spatial_forcing.train import checkpoints, train_or_continue

pytestmark = pytest.mark.usefixtures("groot_untouched")
MIXED = {LEFT: SMALL, RIGHT: (64, 40)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[Any], Path]:
    return datasets_of_size(tmp_path_factory.mktemp("data"))


def doctor(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "doctor", *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out + err


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos") / "demos", episodes=2, frames=4, size=112)


def test_a_data_set_alone(monkeypatch, capsys, demos):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(demos), "--batch-size", "4")
    assert code == 0, text
    for fact in (
        "2 views x 8 rows x 8 columns = 128 visual tokens",
        "TinyVLA, 4 blocks",
        "after block 3 of 4",
        "8 x 8 tokens per view, width 224; Apache-2.0",
        "32 of 32 blanked cells",
        "s plain",
    ):
        assert fact in text, text


def smolvla_flags(folder: Path, dataset: Path) -> list[str]:
    return [
        f"--policy.vlm_model_name={small_smolvlm(folder / 'smolvlm')}",
        "--policy.num_vlm_layers=4",
        "--policy.resize_imgs_with_padding=[32,32]",
        "--policy.train_expert_only=false",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
        "--policy.device=cpu",
        "--dataset.repo_id=local/small",
        f"--dataset.root={dataset}",
        "--batch_size=2",
    ]


def test_lerobots_flags_and_the_plain_type(monkeypatch, capsys, folder, data):
    flags = ["--policy.type", "smolvla", *smolvla_flags(folder, data(SMALL)), "--teacher=untrained-tiny"]
    code, text = doctor(monkeypatch, capsys, *flags)
    assert code == 0, text
    assert "SmolVLA, 4 blocks" in text
    assert "blanked cells move most the token" in text


def test_an_output_folder_that_exists_would_stop_training(monkeypatch, capsys, demos, tmp_path):
    flags = ["--dataset", str(demos), "--teacher=untrained-tiny", f"--output_dir={tmp_path}"]
    code, text = doctor(monkeypatch, capsys, *flags)
    assert code == 1
    assert "wrong: The output folder" in text
    code, text = doctor(monkeypatch, capsys, *flags[:-1], f"--output_dir={tmp_path / 'new'}")
    assert code == 0, text
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_and_lerobots_path(monkeypatch, capsys, folder, data, tmp_path):
    plain = small_config("smolvla", folder)
    run = train_config(plain, data(SMALL), tmp_path / "run", steps=1, batch_size=2, seed=3, save_every=1)
    with small_parts("smolvla"):
        saved = checkpoints(train_or_continue(run))[1]
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    with_dataset = ["--dataset", str(data(SMALL)), "--teacher", "untrained-tiny", "--batch_size", "2"]
    for flag in (f"--checkpoint={saved}", f"--policy.path={saved}"):
        code, text = doctor(monkeypatch, capsys, flag, *with_dataset)
        assert code == 0, text
        assert "SmolVLA, 4 blocks" in text
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before
    code, text = doctor(monkeypatch, capsys, f"--checkpoint={saved.parents[1]}", *with_dataset)
    assert code == 2
    assert f"Did you mean {saved}" in text


def test_a_data_set_that_calls_its_cameras_otherwise(monkeypatch, capsys, folder, data, tmp_path):
    plain = small_config("smolvla", folder)
    run = train_config(plain, data(SMALL), tmp_path / "run", steps=1, batch_size=2, seed=3, save_every=1)
    with small_parts("smolvla"):
        saved = checkpoints(train_or_continue(run))[1]
    named = {"observation.images.front": RIGHT, "observation.images.side": LEFT}
    other = make_dataset(tmp_path / "other", episodes=1, frames=4, size=SMALL, cameras=tuple(named))
    flags = [f"--checkpoint={saved}", f"--dataset={other}", "--teacher=untrained-tiny", "--batch_size=2"]
    flags += [f"--rename_map={json.dumps(named)}", f"--policy.forcing.cameras={json.dumps(named)}"]
    code, text = doctor(monkeypatch, capsys, *flags)
    assert code == 0, text
    assert "blanked cells move most the token" in text


@pytest.mark.parametrize("size", [SMALL, MIXED])
def test_the_built_in_vla_stretches_images_of_any_size(monkeypatch, capsys, data, size):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(data(size)), "--teacher=untrained-tiny")
    assert code == 0, text
    assert "blanked cells move most the token" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy.chunk_size=many"], "chunk_size"),
        (["--policy.no_such_option=1"], "unrecognized arguments: --policy.no_such_option=1"),
        (["--datset=demos"], "unrecognized arguments: --datset=demos"),
        (["--policy.path=/no/where"], "/no/where"),
        (["--policy.chunk_size=0"], "n_action_steps must be 1 to chunk_size"),
        (["--policy.forcing.cache=nowhere"], "nowhere"),
    ],
)
def test_flags_that_training_would_not_take(monkeypatch, capsys, demos, flags, says):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(demos), *flags)
    assert code == 2
    assert says in text


def test_flags_are_completed_and_nothing_else():
    with training_flags(["--policy.type=pi0"], dataset="owner/name", cache=Path("features")) as flags:
        assert flags == [
            "--policy.type=sf_pi0",
            "--policy.forcing.cache=features",
            "--batch_size=8",
            "--policy.push_to_hub=false",
            "--dataset.repo_id=owner/name",
        ]
    given = ["--policy.path=x", "--policy.forcing.teacher=vggt-1b", "--dataset.repo_id=a/b", "--batch_size=2"]
    with training_flags(given) as flags:
        assert flags == [*given, "--policy.push_to_hub=false"]


def test_frames_are_rendered_where_there_is_no_data_set(tmp_path, monkeypatch):
    made: list[Path] = []

    def rendered(root: Path, frames: int) -> Path:
        made.append(make_dataset(root, episodes=1, frames=frames, size=112))
        return root

    monkeypatch.setattr("spatial_forcing.rehearsal._rendered", rendered)
    options = {"teacher": "untrained-tiny", "layer": 1, "resolution": 28, "dtype": None}
    with training_flags([], batch_size=2, **options) as flags:
        assert {"--policy.forcing.layer=1", "--policy.forcing.resolution=28"} <= set(flags)
        assert examine_training(read_config(flags), Console(quiet=True), flags)
    assert not made[0].exists()
