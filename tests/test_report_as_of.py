"""Results as of an earlier evaluation: the numbers of that step, and nothing that was measured later."""

import copy
import json

import commands
import pytest
from small_results import STEPS

from spatial_forcing.json_record import ResultsError
from spatial_forcing.report.as_of import as_of
from spatial_forcing.report.markdown import markdown
from spatial_forcing.report.summary import summarise
from spatial_forcing.results import Results


@pytest.fixture
def whole(results) -> Results:
    return Results.checked(results, "results")


def test_at_the_last_step_the_arms_are_what_they_are(whole):
    at_end, before = summarise(as_of(whole, STEPS[-1])), summarise(whole)
    assert at_end.arms.keys() == {name for name, arm in before.arms.items() if arm.role != "reference"}
    for name, arm in at_end.arms.items():
        assert (arm.success, arm.error_by_seed) == (
            before.arms[name].success,
            before.arms[name].error_by_seed,
        )
    assert [c.p_value for c in at_end.comparisons] == [c.p_value for c in before.comparisons]


def test_at_an_earlier_step_nothing_later_counts(whole):
    earlier = summarise(as_of(whole, STEPS[1]))
    for run in whole.runs:
        if (arm := earlier.arms.get(run.arm)) is None:
            continue
        there = run.evaluations[1]
        assert (arm.evaluated_step, arm.heldout_error) == (STEPS[1], there.heldout_error)
        assert arm.success is not None
        assert arm.success.successes == sum(one.success for one in there.episodes)
        assert arm.finished, "an evaluation is complete at its own step"
    assert earlier.probe is None
    assert f"(at step {STEPS[1]} of {STEPS[-1]})" in earlier.title


def test_the_results_themselves_stay(whole):
    before = copy.deepcopy(whole)
    as_of(whole, STEPS[0])
    assert whole == before


def test_a_step_without_evaluation_is_refused(whole):
    with pytest.raises(ResultsError, match=r"not evaluated at step 150. Evaluated steps: 100, 200, 300, 400"):
        as_of(whole, 150)


def test_the_command_prints_and_writes_nothing(results, whole, tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(results))
    before = sorted(path.name for path in tmp_path.rglob("*"))
    assert commands.run("report", tmp_path, "--step", STEPS[0]) == 0
    assert capsys.readouterr().out == markdown(summarise(as_of(whole, STEPS[0])))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
