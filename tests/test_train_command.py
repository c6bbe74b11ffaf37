"""`spatial-forcing train`: what is wrong is said before anything is computed, and what Ctrl-C leaves."""

import shlex
import sys

import pytest

from spatial_forcing.cli import main
from spatial_forcing.hosts.tiny_policy import TinyPolicy
from spatial_forcing.train import checkpoints

SMALL = ["--policy.type=tiny", "--policy.push_to_hub=false", "--policy.image_size=28", "--policy.width=32"]
SMALL += ["--policy.heads=2", "--dataset.repo_id=local/small", "--num_workers=0", "--batch_size=4"]


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code, and what was printed on standard error after LeRobot's own lines."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "train", *arguments])
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    return code, capsys.readouterr().err.split("spatial-forcing: ")[-1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--policy.wdith=3"], "--policy.wdith=3. Did you mean --policy.width?"),
        (["--policy.type=tinny"], "Did you mean 'tiny'"),
        (["--steps=many"], "--steps: Couldn't parse 'many' into an int"),
        (["--policy.n_action_steps=99"], "n_action_steps must be 1 to chunk_size = 8, got 99."),
        (["--batch_size=0"], "--batch_size must be at least 1; got 0."),
        (
            ["--dataset.root=OUT/nothing"],
            "local/small in --dataset.root=OUT/nothing (no such folder) could not be read",
        ),
        (["--output_dir=DATA"], "DATA exists. There is no checkpoint in DATA"),
        (["--config_path=OUT/none.json"], "--config_path=OUT/none.json cannot be read: "),
    ],
)
def test_bad_flags_are_one_message(monkeypatch, capsys, tmp_path, dataset, flags, message):
    def filled(text: str) -> str:
        return text.replace("OUT", str(tmp_path)).replace("DATA", str(dataset))

    given = [*SMALL, f"--dataset.root={dataset}", f"--output_dir={tmp_path / 'run'}", "--steps=2"]
    code, said = run(monkeypatch, capsys, *given, *map(filled, flags))
    assert code == 2
    assert filled(message) in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.system
def test_after_ctrl_c_the_command_that_is_named_continues(monkeypatch, capsys, tmp_path, dataset):
    given = [*SMALL, f"--dataset.root={dataset}", "--steps=4", "--save_freq=2", "--log_freq=1"]
    forward, steps = TinyPolicy.forward, []

    def interrupted(policy, batch):
        steps.append(batch)
        if len(steps) in (2, 5):
            raise KeyboardInterrupt
        return forward(policy, batch)

    monkeypatch.setattr(TinyPolicy, "forward", interrupted)
    code, said = run(monkeypatch, capsys, *given, f"--output_dir={tmp_path / 'early'}")
    assert code == 130
    assert f"stopped. There is no checkpoint in {tmp_path / 'early'}" in said
    code, said = run(monkeypatch, capsys, *given, f"--output_dir={tmp_path / 'early'}")
    assert code == 2
    assert "early exists. There is no checkpoint" in said

    folder = tmp_path / "run"
    code, said = run(monkeypatch, capsys, *given, f"--output_dir={folder}")
    assert code == 130
    assert "Its last checkpoint is of step 2. To continue from it: spatial-forcing train" in said
    assert "step 2. To continue" in run(monkeypatch, capsys, *given, f"--output_dir={folder}")[1]
    monkeypatch.setattr(TinyPolicy, "forward", forward)
    continues = shlex.split(said.split("spatial-forcing train ")[1])
    assert run(monkeypatch, capsys, *continues)[0] == 0
    assert list(checkpoints(folder)) == [2, 4]
