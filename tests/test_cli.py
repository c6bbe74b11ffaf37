"""The command line as a person meets it: one clear message for bad input, and the README's code runs."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from spatial_forcing import SpatialForcing, host_of, load_teacher
from spatial_forcing.cli import COMMANDS, main
from spatial_forcing.demo_settings import DemoSettings
from spatial_forcing.hosts.tiny import TinyVLA, hash_words
from spatial_forcing.provenance import commit, hardware, versions
from spatial_forcing.sim.spec import DemoSpec

README = Path(__file__).parents[1] / "README.md"


def run(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and what was printed on standard error."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    return int(stopped.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["collect", "--out", "OUT/d", "--tasks", "reech-v3"], "Did you mean 'reach-v3'"),
        (["demo", "--out", "OUT/d", "--tasks", "reech-v3"], "Did you mean 'reach-v3'"),
        (["demo", "--out", "OUT/d", "--teacher", "vgtt-1b"], "Did you mean 'vggt-1b'"),
        (["eval", "--checkpoint", "OUT"], "has no config.json"),
        (["report", "--out", "OUT"], "holds no comparison"),
        (["report", "OUT"], "holds no comparison"),
        (["compare", "status", "OUT"], "holds no comparison"),
        (["probe", "--comparison", "OUT"], "holds no comparison"),
        (["probe", "--out", "OUT"], "Name the policies to probe"),
        (
            ["cache", "--dataset", "OUT", "--out", "OUT/f", "--teacher", "untrained-tiny"],
            "not a LeRobotDataset",
        ),
        (["doctor", "--teacher", "nobody"], "Unknown teacher"),
        (["doctor", "--dataset", "OUT", "--teacher", "untrained-tiny"], "not a LeRobotDataset"),
        (["doctor", "--checkpoint", "OUT"], "has no config.json"),
        (["doctor", "--policy.type=smolvlo"], "Did you mean 'smolvla'"),
        (["doctor", "--policy.type=sf_smolvlm"], "Did you mean 'sf_smolvla'"),
        (
            ["doctor", "--policy.type=sf_act", "--policy.forcing.weigth=1"],
            "Did you mean --policy.forcing.loss_weight?",
        ),
    ],
)
def test_bad_input_is_one_message_and_exit_code_2(monkeypatch, capsys, tmp_path, arguments, message):
    code, error = run(monkeypatch, capsys, *[a.replace("OUT", str(tmp_path)) for a in arguments])
    assert code == 2
    assert message in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir()), "something was left behind"


def help_of(monkeypatch, capsys, *command: str) -> str:
    """What ``--help`` prints, without frames and line breaks."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", *command, "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    return re.sub(r"[\s│]+", " ", capsys.readouterr().out)


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "train"])
def test_every_command_explains_itself(monkeypatch, capsys, command):
    assert COMMANDS[command].__doc__ in help_of(monkeypatch, capsys, command)


@pytest.mark.parametrize(("command", "options"), [("demo", DemoSettings), ("collect", DemoSpec)])
def test_options_and_defaults_have_one_source(monkeypatch, capsys, command, options):
    monkeypatch.setenv("COLUMNS", "400")
    text = help_of(monkeypatch, capsys, command)
    for one in fields(options):
        flag = f"--{one.name.replace('_', '-')}"
        assert re.search(rf"{flag}[ .,\[]", text), flag
    spec = DemoSettings().demonstrations()
    assert replace(spec, episodes=DemoSettings.episodes) == DemoSpec()
    defaults = {one.name: one.default for one in fields(COMMANDS[command])}
    for one in fields(options):
        assert defaults[one.name] == one.default


def test_what_an_option_may_not_be_is_one_message(monkeypatch, capsys, tmp_path):
    for command in ("demo", "collect"):
        out = ["--out", str(tmp_path / "d")]
        code, error = run(monkeypatch, capsys, command, *out, "--start", "middle")
        assert (code, error.count("Unknown start 'middle'")) == (2, 1)
        assert "Traceback" not in error


def test_the_help_lists_every_command_with_what_it_does(monkeypatch, capsys):
    text = help_of(monkeypatch, capsys)
    for name, command in COMMANDS.items():
        assert f"• {name} {command.__doc__}" in text


def test_train_hands_everything_to_lerobot_untouched(monkeypatch):
    given = ["--policy.type=sf_tiny", "--help", "--dataset.root", "a b", "--no-such-flag=1"]
    seen = []
    monkeypatch.setattr("spatial_forcing.cli.train", seen.append)
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "train", *given])
    main()
    assert seen == [given]


def test_waiting_threads_sleep_in_what_the_command_line_starts(monkeypatch, capsys):
    monkeypatch.delenv("OMP_WAIT_POLICY")
    help_of(monkeypatch, capsys)
    assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    help_of(monkeypatch, capsys)
    assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE", "a choice of the user's own"


def test_torch_is_not_there_before_the_environment_of_its_threads_is():
    program = "import sys, spatial_forcing.cli; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=200)


def test_forcing_flags_explain_themselves(monkeypatch, capsys):
    from lerobot_policy_spatial_forcing.forcing import ForcingConfig

    monkeypatch.setenv("COLUMNS", "400")
    text = help_of(monkeypatch, capsys, "train", "--policy.type=sf_tiny")
    explained = dict(re.findall(r"--policy\.forcing\.(\w+) \S+ ([A-Z][^-]+)", text))
    assert explained.keys() == {field.name for field in fields(ForcingConfig)}


def test_the_readmes_code_runs_as_printed():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    assert len(blocks) >= 2
    names: dict = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), names)
    assert all(p.grad is not None for p in names["sf"].parameters())
    assert names["vla"].patches.weight.grad.abs().sum() > 0
    names["sf"].detach()


def test_the_readmes_file_map_names_every_file():
    named = README.read_text()
    package = README.parent / "src" / "spatial_forcing"
    for path in package.iterdir():
        if path.suffix == ".py" and path.stem not in ("__init__", "errors"):
            assert f"{path.name} " in named, path.name
        if path.is_dir() and (path / "__init__.py").is_file():
            assert f"{path.name}/" in named, path.name


def test_provenance_is_serialisable_and_names_no_folder():
    record = json.dumps({"versions": versions(), "hardware": hardware(), "commit": commit()})
    assert "torch" in record
    assert str(Path.home()) not in record


def a_loss(vla: TinyVLA, images: torch.Tensor):
    words = hash_words(["move the hand to the ball"] * len(images), vla.vocabulary, vla.max_words)
    return lambda: vla(images, words, torch.zeros(len(images), 4)).abs().mean()


def test_all_tokens_masked_trains_nothing():
    from spatial_forcing import Features

    vla, images = TinyVLA(), torch.rand(2, 2, 3, 112, 112)
    sf = SpatialForcing(host_of(vla), load_teacher("untrained-tiny"))
    with sf.watch():
        a_loss(vla, images)()
    width = sf.teacher.width
    loss = sf(Features(torch.full((2, 2, 8, 8, width), torch.nan), torch.zeros(2, 2, 8, 8, dtype=torch.bool)))
    loss.backward()
    assert loss == 0
    assert all((p.grad == 0).all() for p in sf.parameters())
