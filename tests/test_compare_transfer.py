"""Trained policies of a comparison in another environment: nothing trains, the same episodes for all arms."""

import json
import shutil
from pathlib import Path

import commands
import pytest
from small_depth import painted_dataset

from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.folder import NOTE, comparison_in
from spatial_forcing.compare.plan import Comparison, training_of
from spatial_forcing.compare.status import work_done
from spatial_forcing.compare.transfer import transferred, with_environment
from spatial_forcing.locks import FolderLock
from spatial_forcing.results import Results

WORLD = ["--env.type=sf_metaworld", "--env.task=reach-v3", "--env.size=28", "--env.max_steps=4"]
TRAIN = ["--policy.type=tiny", "--policy.image_size=28", "--policy.width=32", "--policy.depth=4"]
TRAIN += ["--policy.heads=2", "--policy.device=cpu", "--steps=2", "--batch_size=2", "--num_workers=0"]


@pytest.fixture(scope="module")
def compared(tmp_path_factory) -> Path:
    """The folder of a finished comparison in the embedded world; only to be read."""
    folder = tmp_path_factory.mktemp("transfer")
    dataset = painted_dataset(folder / "data", episodes=3, frames=3)
    # Painted images are none of this world's.
    assert commands.run(*training(folder / "trained", dataset, "--anyway")) == 0
    return folder / "trained"


def training(out: Path, dataset: Path, *options: str) -> list[object]:
    """The command of a comparison in the embedded world."""
    words = ["compare", "--out", out, "--seeds", "0", "--no-controls", "--probe", "none", *options]
    words += ["--teacher", "untrained-tiny", "--evaluations", "2", "--episodes", "2", "--videos", "0", "--"]
    return [*words, *TRAIN, "--dataset.repo_id=local/d", f"--dataset.root={dataset}", "--log_freq=1", *WORLD]


def test_flags_of_an_environment_replace_its_own():
    flags = ["--steps=3", "--env.type=a", "--env.camera=fixed"]
    assert with_environment(flags, ["--env.camera=beyond"]) == [
        "--steps=3",
        "--env.type=a",
        "--env.camera=beyond",
    ]
    assert with_environment(flags, ["--env.type=b"]) == ["--steps=3", "--env.type=b"], "with its own defaults"


@pytest.mark.system
@pytest.mark.timeout(900)
class TestTransfer:
    @pytest.fixture(scope="class")
    def tested(self, compared, tmp_path_factory) -> Path:
        out = tmp_path_factory.mktemp("tested") / "out"
        words = ["compare", "transfer", "--of", compared, "--out", out, "--anyway", "--episodes", "3"]
        assert commands.run(*words, "--", "--env.camera=beyond") == 0
        return out

    def test_the_last_checkpoints_are_rolled_out_and_nothing_trains(self, compared, tested):
        first, there = (Results.read(folder / "results.json") for folder in (compared, tested))
        assert there.settings["command"].endswith("--env.camera=beyond")
        assert there.settings["policies_of"] == "trained"
        assert [run.arm for run in there.runs] == [run.arm for run in first.runs] == ["plain", "forced"]
        for run, before in zip(there.runs, first.runs, strict=True):
            assert [(one.step, len(one.episodes)) for one in run.evaluations] == [(2, 3)]
            assert run.evaluations[0].heldout_error is None, "it is that of the first comparison"
            assert (run.curves, run.parameters) == (before.curves, before.parameters)
        assert not list(tested.glob("runs/*/train"))
        assert not (tested / "features").exists()
        assert (tested / "report.html").stat().st_size > 10_000

    def test_the_report_says_what_was_gone_on_with(self, compared, tested):
        for folder in (compared, tested):
            warnings = Results.read(folder / "results.json").warnings
            assert any(warning.startswith("wrong: ") for warning in warnings)
            said = (folder / "report.md").read_text()
            assert all(f"- Warned of before it began: {warning}" in said for warning in warnings)

    def test_all_policies_meet_the_same_episodes_and_other_ones_than_before(self, compared, tested):
        first, there = (Results.read(folder / "results.json").runs for folder in (compared, tested))
        seen = [[one.seed for one in run.evaluations[0].episodes] for run in there]
        assert seen[0] == seen[1]
        same_seed = zip(first[0].evaluations[-1].episodes, there[0].evaluations[-1].episodes, strict=False)
        assert all(a.seed == b.seed and a.final_distance != b.final_distance for a, b in same_seed), (
            "a camera elsewhere shows other images, so that the policy acts otherwise"
        )

    def test_the_same_command_repeats_nothing_and_another_is_refused(self, compared, tested, capsys):
        found = tested / "runs" / "plain-f100-s0" / "eval" / "000002.json"
        before = found.stat().st_mtime_ns
        words = ["compare", "transfer", "--of", compared, "--out", tested, "--anyway"]
        assert commands.run(*words, "--episodes", "3", "--", "--env.camera=beyond") == 0
        assert found.stat().st_mtime_ns == before
        assert commands.run(*words, "--episodes", "3", "--", "--env.camera=fixed") == 2
        assert "already holds another comparison" in capsys.readouterr().err

    def test_status_counts_evaluations(self, tested, capsys):
        assert work_done(comparison_in(tested), tested) == {"plain": (2, 2), "forced": (2, 2)}
        assert commands.run("compare", "status", tested) == 0
        assert "2 of 2 runs finished" in capsys.readouterr().out

    def test_status_says_which_runs_wait(self, tested, tmp_path, capsys):
        begun = tmp_path / "begun"
        shutil.copytree(tested, begun, symlinks=True)
        for name in ("plain-f100-s0", "forced-f100-s0"):
            shutil.rmtree(begun / "runs" / name / "eval")
        (begun / "runs" / "forced-f100-s0" / "log.txt").unlink()

        def states() -> list[str]:
            assert commands.run("compare", "status", begun) == 0
            return [line for line in capsys.readouterr().out.splitlines() if "-f100-s0" in line]

        plain, forced = states()
        assert "stopped" in plain
        assert "waiting" in forced
        with FolderLock(begun / "runs" / "plain-f100-s0"):
            assert "evaluating" in states()[0]

    def test_guards_refuse_an_environment_that_does_not_fit(self, compared, tmp_path, capsys):
        words = ["compare", "transfer", "--of", compared, "--out", tmp_path / "out", "--"]
        assert commands.run(*words, "--env.camera=beyond") == 2
        said = capsys.readouterr().err
        assert "would make this evaluation pointless" in said
        assert not (tmp_path / "out").exists()

    def test_guards_refuse_it_before_anything_trains(self, compared, tmp_path, capsys):
        out, dataset = tmp_path / "out", compared.parent / "data"
        assert commands.run(*training(out, dataset)) == 2
        printed = capsys.readouterr()
        assert "Nothing was trained." in printed.err
        assert "plain, replay: expected the first steps of 3 demonstrations" in printed.err
        assert "plain fits in: cameras, " in printed.out
        assert not out.exists()

    def test_what_cannot_be_tested(self, compared, tested, tmp_path):
        for of, flags, says in (
            (compared, WORLD, "were tested so already: --env.type=sf_metaworld"),
            (compared, [], "were tested so already"),
            (compared, ["--steps=3"], "flags of an environment"),
            (tested, ["--env.camera=fixed"], "holds tests of other policies"),
            (tmp_path, ["--env.camera=fixed"], "holds no comparison"),
        ):
            with pytest.raises(CompareError, match=says):
                transferred(of, flags)

    def test_an_unfinished_comparison_is_refused(self, compared, tmp_path):
        unfinished = tmp_path / "unfinished"
        shutil.copytree(compared, unfinished, symlinks=True)
        shutil.rmtree(unfinished / "runs" / "forced-f100-s0" / "train" / "checkpoints" / "000002")
        with pytest.raises(CompareError, match="is not finished: forced-f100-s0 has no checkpoint of step 2"):
            transferred(unfinished, ["--env.camera=beyond"])

    def test_a_comparison_that_trains_notes_nothing_that_earlier_versions_lack(self, compared, tested):
        """Else one that they began would be refused as another one."""
        saved, there = (json.loads((folder / NOTE).read_text()) for folder in (compared, tested))
        assert there.keys() - saved.keys() == {"policies"}
        assert all("of" not in arm for arm in saved["arms"])
        assert comparison_in(compared).policies is None

    def test_policies_are_found_where_they_were_trained(self, compared, tested):
        there: Comparison = comparison_in(tested)
        run = there.runs()[0]
        assert training_of(there, tested, run) == compared.resolve() / "runs" / run.name / "train"
