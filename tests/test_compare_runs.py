"""A comparison from one command to its report: equal starts, resumed, never repeated, looked at first."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import commands
import pytest
import torch
from small_dataset import make_dataset

from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.run import run
from spatial_forcing.compare.start import BATCHES, NOTE, Start, checksum_of
from spatial_forcing.results import Results

RUNS = ["forced-f100-s0", "plain-f100-s0"]
# Each run is a process that imports LeRobot: minutes on a machine that is busy otherwise.
pytestmark = [pytest.mark.timeout(900), pytest.mark.system]


def command(out: Path, dataset: Path, *options: str, flags: tuple[str, ...] = ()) -> list[str]:
    words = ["compare", "--out", str(out), "--seeds", "0", "--arms", "plain", "forced", "--no-controls"]
    words += ["--teacher", "untrained-tiny", "--evaluations", "2", "--holdout", "0.3", *options, "--"]
    words += ["--policy.type=tiny", "--policy.image_size=28", "--policy.width=32", "--policy.depth=4"]
    words += ["--policy.heads=2", "--policy.device=cpu", "--steps=4", "--batch_size=2", "--num_workers=0"]
    return [*words, "--dataset.repo_id=local/small", f"--dataset.root={dataset}", "--log_freq=1", *flags]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("compare") / "data", episodes=4, frames=6)


@pytest.fixture(scope="module")
def compared(dataset, tmp_path_factory) -> Path:
    """The folder of a comparison of two arms."""
    out = tmp_path_factory.mktemp("compared") / "out"
    assert commands.run(*command(out, dataset)) == 0
    return out


def test_from_one_command_to_the_report(compared):
    results = Results.read(compared / "results.json")
    assert {run.arm: run.train_episodes for run in results.runs} == {"plain": 2, "forced": 2}
    for one in results.runs:
        assert [evaluation.step for evaluation in one.evaluations] == [2, 4]
        assert all(evaluation.heldout_error and evaluation.heldout_loss for evaluation in one.evaluations)
        assert one.seconds_per_step
        assert one.peak_memory_mb
        assert one.parameters == results.runs[0].parameters
        assert [row.step for row in one.curves if row.action_loss is not None] == [1, 2, 3, 4]
    assert (compared / "report.html").stat().st_size > 10_000


def test_arms_begin_with_the_same_weights_and_batches(compared):
    forced, plain = (json.loads((compared / "runs" / name / NOTE).read_text()) for name in RUNS)
    assert forced == plain
    assert len(set(plain["batches"])) == BATCHES


def test_stored_features_know_nothing_of_held_out_episodes(compared):
    heldout = json.loads((compared / "comparison.json").read_text())["split"]["heldout"]
    store = FeatureStore(compared / "features" / "untrained-tiny-f100")
    assert store.source.frames == 2 * 6
    with pytest.raises(CacheError, match="which do not have it"):
        store.read(torch.tensor([6 * heldout[0]]))


def test_a_finished_run_is_not_repeated_and_an_interrupted_one_continues(compared):
    plain = compared / "runs" / "plain-f100-s0"
    last = json.loads((plain / "eval" / "000004.json").read_text())
    (plain / "eval" / "000004.json").unlink()
    shutil.rmtree(plain / "train" / "checkpoints" / "000004")
    (plain / "train" / "checkpoints" / "last").unlink()
    (plain / "train" / "checkpoints" / "last").symlink_to("000002")
    kept = (plain / "eval" / "000002.json").stat().st_mtime_ns
    run(plain)
    again = json.loads((plain / "eval" / "000004.json").read_text())
    assert again["heldout_error"] == last["heldout_error"], "straight through and continued are the same"
    assert (plain / "eval" / "000002.json").stat().st_mtime_ns == kept


def test_without_recorded_depth_there_is_no_probe_and_the_data_are_shown(compared):
    results = Results.read(compared / "results.json")
    assert results.probe is None
    assert not (compared / "probe").exists()
    assert results.samples
    assert (compared / results.samples[0].path).stat().st_size > 1000


def test_seconds_of_stages_add_up_over_attempts(dataset, compared):
    before = json.loads((compared / "timings.json").read_text())
    assert before["training and evaluation"] > 1
    assert commands.run(*command(compared, dataset)) == 0
    after = json.loads((compared / "timings.json").read_text())
    assert after["looking at every arm"] == before["looking at every arm"], "a finished one is not looked at"
    assert after["training and evaluation"] >= before["training and evaluation"]


def test_how_far_it_is(compared, capsys):
    assert commands.run("compare", "status", "--out", compared) == 0
    said = capsys.readouterr().out
    assert "2 of 2 runs finished" in said
    assert said.count("2 of 2") == 3


class Policy(torch.nn.Module):
    def __init__(self, value: float):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((2,), value))
        self.forcing = torch.nn.Linear(2, 2)


def begun(
    folder: Path, siblings: list[Path], value: float, batches: list[float], elsewhere: Sequence[Path] = ()
) -> None:
    start = Start(folder, siblings, elsewhere)
    for number in batches:
        start.note(Policy(value), {"index": torch.tensor([number]), "task": ["reach"]})


def test_a_run_that_begins_otherwise_than_its_siblings_stops(tmp_path):
    assert checksum_of(Policy(1.0)) == checksum_of(Policy(1.0)), "what forcing adds does not count"
    for name in "abc":
        (tmp_path / name).mkdir()
    a, b, c = (tmp_path / name for name in "abc")
    begun(a, [], 1.0, [1, 2, 3])
    begun(b, [a], 1.0, [1, 2, 3])
    with pytest.raises(CompareError, match="c and a do not begin with the same weights"):
        begun(c, [a], 2.0, [1, 2, 3])
    with pytest.raises(CompareError, match="c and a do not begin with the same batches"):
        begun(c, [a], 1.0, [1, 3])
    begun(c, [], 2.0, [1, 2, 3], elsewhere=[a])
    with pytest.raises(CompareError, match="c and a do not begin with the same batches"):
        begun(c, [], 2.0, [1, 3], elsewhere=[a])


@pytest.mark.parametrize(
    ("options", "flags", "says"),
    [
        ((), ("--seed=3",), "--seed is not for the command"),
        ((), ("--stepz=3",), "Did you mean --steps"),
        ((), ("--policy.forcing.site=blocks.9",), "blocks.9"),
        (("--teacher", "vgg"), (), "Unknown teacher"),
        (("--fractions", "0"), (), "above 0 and up to 1"),
        (("--probe", "deep"), (), "--probe is auto, none, recorded or pseudo:<model>; got 'deep'"),
        (("--probe", "recorded"), (), "The data set has no depth"),
        (("--holdout-episodes", "9"), (), "names 9"),
        ((), ("--env.type=pusht",), "environment pusht cannot be made"),
    ],
)
def test_what_is_wrong_is_said_before_anything_trains(dataset, tmp_path, capsys, options, flags, says):
    out = tmp_path / "out"
    assert commands.run(*command(out, dataset, *options, flags=flags)) == 2
    assert says in " ".join(capsys.readouterr().err.split())
    assert not (out / "runs").exists()
