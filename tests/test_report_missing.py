"""Reports of results of which something is missing, unfinished or wrong."""

import math

import pytest
from small_results import page_of, report, summarised

from spatial_forcing.report import ResultsError, write_report


def test_an_unfinished_arm_is_compared_where_it_got_to_and_said_to_be_unfinished(results, tmp_path):
    forced = results["arms"]["forced"]
    forced["curves"], forced["evaluations"] = forced["curves"][:25], forced["evaluations"][:2]
    page, record = page_of(results, tmp_path), summarised(results)
    assert (
        "Forced is unfinished: it was trained for 250 of 400 steps and was last evaluated at step 200."
        in page.text
    )
    assert "at step 200, the last at which both were evaluated, not at the end" in record["headline"]
    assert "4/25" in record["headline"]
    assert record["comparisons"][0]["heldout"] == {"step": 200, "a": 0.262, "b": 0.181}


def test_an_arm_that_has_only_started_still_gives_a_report(results, tmp_path):
    results["arms"]["forced"] |= {"curves": [], "evaluations": [], "videos": []}
    page, record = report(results, tmp_path)
    assert "cannot be compared: there is no step at which both were evaluated" in record["headline"]
    assert "trained for 0 of 400 steps and has not been evaluated" in page.text


def test_other_episodes_give_no_test_but_a_reason(results, tmp_path):
    results["arms"]["forced"]["evaluations"][-1]["episodes"][4]["seed"] = 5
    page, record = page_of(results, tmp_path), summarised(results)
    assert record["comparisons"][0]["p_value"] is None
    assert "not evaluated on the same episodes" in record["headline"]
    assert "No paired test" in page.text


@pytest.mark.parametrize(
    ("remove", "said"),
    [
        ("probe", "The depth probe was not run."),
        ("samples", "No sample frames were given."),
        ("comparisons", "Forced succeeded more often"),
        ("commit", "commit unknown"),
    ],
)
def test_optional_parts_may_be_missing_and_are_said_to_be(results, tmp_path, remove, said):
    del results[remove]
    assert said in page_of(results, tmp_path).text


def test_missing_files_and_videos_are_named(results, tmp_path):
    (tmp_path / "probe.png").unlink()
    (tmp_path / "forced" / "1.mp4").unlink()
    results["arms"]["baseline"]["videos"] = ["baseline/0.mp4"]
    page = page_of(results, tmp_path)
    assert "probe.png is not there" in page.text
    assert "forced/1.mp4 is not there" in page.text
    assert "no video" in page.text
    for name in ("baseline", "forced"):
        results["arms"][name]["videos"] = []
    assert "No rollout was filmed." in page_of(results, tmp_path).text


def test_nothing_measured_leaves_the_plots_out_and_says_so(results, tmp_path):
    for one in results["arms"].values():
        one["curves"] = [{"step": row["step"]} for row in one["curves"]]
    page, record = report(results, tmp_path)
    assert page.text.count("not measured in this run") == 3
    assert record["arms"]["forced"]["action_loss"] is None


def test_diverged_numbers_become_null_and_not_broken_json(results, tmp_path):
    results["arms"]["forced"]["curves"][-1]["action_loss"] = math.nan
    results["arms"]["forced"]["evaluations"][-1]["heldout_error"] = math.inf
    results["probe"]["rows"][0]["absrel"] = math.nan
    _, record = report(results, tmp_path)
    assert record["arms"]["forced"]["heldout_error"] is None
    assert math.isfinite(record["arms"]["forced"]["action_loss"])
    assert record["probe"]["rows"][0]["absrel"] is None


def spoilt(results: dict, path: list, value=...) -> dict:
    inner = results
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        inner[path[-1] + "_"] = inner.pop(path[-1])
    else:
        inner[path[-1]] = value
    return results


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (["title"], ..., r"results has no 'title'\. Did you mean 'title_' there\?"),
        (["teacher", "licence"], ..., r"results\['teacher'\] has no 'licence'"),
        (["arms", "forced", "steps"], ..., r"results\['runs'\]\[1\] has no 'steps'"),
        (["arms", "forced", "evaluations", 2, "step"], ..., r"\['evaluations'\]\[2\] has no 'step'"),
        (
            ["arms", "forced", "evaluations", 2, "episodes", 3, "success"],
            "yes",
            "must be bool, got str: 'yes'",
        ),
        (["arms", "forced", "curves", 5, "action_loss"], "low", "must be int or float, got str"),
        (["arms", "forced", "steps"], True, "must be int, got bool"),
        (["arms", "forced", "role"], "hero", "must be one of arm, control, reference"),
        (["arms", "forced", "curves", 5, "step"], 10, "must increase"),
        (["arms"], {}, "nothing to report"),
        (["arms"], [1], "must be dict, got list"),
        (["tasks"], "reach-v3", "must be list, got str"),
        (
            ["comparisons"],
            [["baseline", "forces"]],
            r"got \['baseline', 'forces'\]\. Arms: baseline, forced, blind",
        ),
        (["arms", "forced", "evaluations", 3, "episodes", 1, "seed"], 1_000_003, "an episode appears twice"),
    ],
)
def test_bad_results_are_refused_by_name_before_anything_is_written(results, tmp_path, path, value, message):
    folder = tmp_path / "new"
    results["arms"]["forced"]["evaluations"][3]["episodes"][1]["task"] = "push-v3"
    with pytest.raises(ResultsError, match=message):
        write_report(spoilt(results, path, value), folder)
    assert not folder.exists()
