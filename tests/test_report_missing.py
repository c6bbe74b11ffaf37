"""Reports of results of which something is missing, unfinished or wrong."""

import copy
import math

import pytest
from small_results import episodes, page_of, report, run_of, summarised, with_controls, with_seeds

from spatial_forcing.report import ResultsError, write_report


def test_an_unfinished_arm_is_compared_where_it_got_to_and_said_to_be_unfinished(results, tmp_path):
    forced = run_of(results, "forced")
    forced["curves"], forced["evaluations"] = forced["curves"][:25], forced["evaluations"][:2]
    page, record = page_of(results, tmp_path), summarised(results)
    assert (
        "Forced is unfinished: it was trained for 250 of 400 steps and was last evaluated at step 200."
        in page.text
    )
    assert "so far, not at the end: forced and baseline at step 200." in page.text
    assert "The comparison is unfinished" in record["verdict"]["headline"]
    assert "4/25" in record["verdict"]["not_shown"][0]
    errors = record["comparisons"][0]["errors"]
    assert (errors["step"], errors["a"], errors["b"]) == (200, 0.262, 0.181)


def test_an_arm_that_has_only_started_still_gives_a_report(results, tmp_path):
    run_of(results, "forced").update({"curves": [], "evaluations": [], "videos": []})
    page, record = report(results, tmp_path)
    assert (
        "cannot be compared: there is no step at which both were evaluated" in record["verdict"]["headline"]
    )
    assert "trained for 0 of 400 steps and has not been evaluated" in page.text


def test_other_episodes_give_no_test_but_a_reason(results, tmp_path):
    run_of(results, "forced")["evaluations"][-1]["episodes"][4]["seed"] = 5
    page, record = page_of(results, tmp_path), summarised(results)
    assert record["comparisons"][0]["p_value"] is None
    assert "not evaluated on the same episodes" in " ".join(record["verdict"]["not_shown"])
    assert "No paired test" in page.text


THREE = {"baseline": [3, 5, 4], "forced": [14, 13, 16], "blind": [0] * 3, "state": [24] * 3}


def test_a_run_that_diverged_is_named_and_nothing_is_tested_without_it(results, tmp_path):
    """The seeds that are left are no fair sample: it is the arm that diverged which loses one."""
    errors = {"baseline": [0.3, 0.31, 0.305], "forced": [0.25, 0.262, math.nan]}
    results = with_seeds(results, THREE, errors | {"blind": [0.4] * 3, "state": [0.1] * 3})
    for run in results["runs"]:
        run["evaluations"] = [run["evaluations"][-1] | {"episodes": []}]
    page, record = page_of(results, tmp_path), summarised(results)
    errors = record["comparisons"][0]["errors"]
    assert (errors["seeds"], errors["diverged"], errors["p_value"]) == ([0, 1], ["forced in seed 2"], None)
    assert record["verdict"]["headline"].startswith(
        "That forced helps is not shown: it could not be compared"
    )
    assert not record["verdict"]["shown"]
    assert (
        "the error of forced in seed 2 is not finite (the run diverged)" in record["verdict"]["not_shown"][0]
    )
    assert "Diverged, with an error that is not finite: forced in seed 2." in page.text


def test_an_arm_that_diverged_in_every_seed_is_not_judged_by_what_it_was_before(results):
    errors = {name: [0.3, 0.31, 0.305] for name in THREE} | {"forced": [math.nan] * 3}
    results = with_seeds(results, THREE, errors)
    found = summarised(results)["comparisons"][0]
    assert (found["errors"]["step"], found["errors"]["b"], found["steps_to_target"]) == (400, None, None)


def test_a_seed_with_a_damaged_evaluation_is_left_out_and_the_others_are_compared(results, tmp_path):
    results = with_seeds(results, THREE, {name: [0.2, 0.21, 0.19] for name in THREE})
    del run_of(results, "forced", 1)["evaluations"][-1]["episodes"][4]
    page, record = page_of(results, tmp_path), summarised(results)
    c = record["comparisons"][0]
    assert (c["seeds"], c["left_out"]) == ([0, 2], {"1": "episodes of one arm alone: 1"})
    assert c["only_b"] + c["both"] == 14 + 16
    assert record["verdict"]["headline"].endswith("3 seeds each, of which some are left out below.")
    assert "Left out, since they ran other episodes: forced and baseline of seed 1" in page.text


def test_an_arm_that_could_not_be_compared_with_plain_is_not_said_to_be_level(results):
    with_controls(results, 14, 3, 3)
    run_of(results, "baseline")["evaluations"][-1]["episodes"][4]["seed"] = 5
    assert summarised(results)["verdict"]["headline"].startswith(
        "That forced helps is not shown: it could not be compared with baseline."
    )


def test_fractions_that_are_the_same_number_of_episodes_count_once(results):
    for run in list(results["runs"]):
        run["train_episodes"] = 10
        for fraction in (0.1, 0.15):
            results["runs"].append(copy.deepcopy(run) | {"fraction": fraction, "train_episodes": 1})
    found = summarised(results)["comparisons"][0]["data_to_target"]
    assert found["unit"] == "episodes"


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
    run_of(results, "baseline")["videos"] = ["baseline/0.mp4"]
    page = page_of(results, tmp_path)
    assert "probe.png is not there" in page.text
    assert "forced/1.mp4 is not there" in page.text
    assert "no video" in page.text
    for name in ("baseline", "forced"):
        run_of(results, name)["videos"] = []
    assert "No rollout was filmed." in page_of(results, tmp_path).text


def test_nothing_measured_leaves_the_plots_out_and_says_so(results, tmp_path):
    for one in results["runs"]:
        one["curves"] = [{"step": row["step"]} for row in one["curves"]]
    page, record = report(results, tmp_path)
    assert page.text.count("not measured in this run") == 1
    assert record["arms"]["forced"]["action_loss"] is None


def test_diverged_numbers_become_null_and_not_broken_json(results, tmp_path):
    run_of(results, "forced")["curves"][-1]["action_loss"] = math.nan
    run_of(results, "forced")["evaluations"][-1]["heldout_error"] = math.inf
    results["probe"]["rows"][0]["absrel"] = math.nan
    _, record = report(results, tmp_path)
    assert record["arms"]["forced"]["heldout_error"] is None
    assert math.isfinite(record["arms"]["forced"]["action_loss"])
    assert record["probe"]["rows"][0]["absrel"] is None


def test_a_comparison_under_way_is_reported_with_the_seeds_that_are_there(results, tmp_path):
    counts = {"baseline": [3, 4, 2], "forced": [14, 12, 15], "blind": [0] * 3, "state": [24] * 3}
    results = with_seeds(results, counts, {name: [0.2] * 3 for name in counts})
    late, started = run_of(results, "forced", 1), run_of(results, "forced", 2)
    late["evaluations"], started["evaluations"], started["curves"] = late["evaluations"][:2], [], []
    page, record = page_of(results, tmp_path), summarised(results)
    assert "Forced is unfinished: 2 of its 3 runs are." in page.text
    assert "not at the end: forced and baseline in 1 of 3 seeds." in page.text
    assert record["comparisons"][0]["seeds"] == [0]
    assert (record["arms"]["forced"]["seeds"], record["arms"]["forced"]["seeds_planned"]) == ([0], [0, 1, 2])
    results["runs"] = [run for run in results["runs"] if run["arm"] != "forced"]
    assert "Forced has no run yet." in page_of(results, tmp_path).text


def test_without_an_environment_the_arms_are_judged_by_their_error(results, tmp_path):
    counts = dict.fromkeys(results["arms"], [0] * 3)
    errors = {
        "baseline": [0.20, 0.21, 0.22],
        "forced": [0.15, 0.161, 0.169],
        "blind": [0.3] * 3,
        "state": [0.1] * 3,
    }
    results = with_seeds(results, counts, errors) | {"tasks": [], "teacher": None}
    for run in results["runs"]:
        run["evaluations"] = [e | {"episodes": []} for e in run["evaluations"]]
    page, record = page_of(results, tmp_path), summarised(results)
    assert record["verdict"]["headline"].startswith("Forced had a lower held-out action error than baseline.")
    assert "There were no rollouts" in page.text
    assert "McNemar" not in page.text
    assert "cannot be compared" not in page.text


def test_without_any_success_the_error_decides_and_more_steps_are_asked_for(results, tmp_path):
    for name in ("baseline", "forced"):
        run_of(results, name)["evaluations"][-1]["episodes"] = episodes(0)
    verdict = summarised(results)["verdict"]
    assert "no significant sign of a lower held-out action error than baseline" in verdict["headline"]
    assert "no test over one seed" in verdict["not_shown"][0]
    assert verdict["takes"][0] == "More steps, or an easier task: no episode was solved."


def test_an_empty_comparison_is_a_page_all_the_same(results, tmp_path):
    results["runs"] = []
    page, record = report(results, tmp_path)
    assert "Baseline has no run yet." in page.text
    assert "cannot be compared: they have no seed in common" in record["verdict"]["headline"]


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
        (["runs", 1, "steps"], ..., r"results\['runs'\]\[1\] has no 'steps'"),
        (["runs", 1, "evaluations", 2, "step"], ..., r"\['evaluations'\]\[2\] has no 'step'"),
        (
            ["runs", 1, "evaluations", 2, "episodes", 3, "success"],
            "yes",
            "must be bool, got str: 'yes'",
        ),
        (["runs", 1, "curves", 5, "action_loss"], "low", "must be int or float, got str"),
        (["runs", 1, "steps"], True, "must be int, got bool"),
        (["arms", "forced", "role"], "hero", "must be one of arm, control, reference"),
        (["runs", 1, "curves", 5, "step"], 10, "must increase"),
        (["arms"], {}, "nothing to report"),
        (["runs", 1, "arm"], "forces", "of the arm 'forces', which is none of: baseline, forced"),
        (["runs", 1, "arm"], "baseline", "a run appears twice: baseline with seed 7"),
        (["runs", 1, "fraction"], 1.5, "less than or equal to 1"),
        (["arms"], [1], "must be dict, got list"),
        (["tasks"], "reach-v3", "must be list, got str"),
        (
            ["comparisons"],
            [["baseline", "forces"]],
            r"got \['baseline', 'forces'\]\. Arms: baseline, forced, blind",
        ),
        (["runs", 1, "evaluations", 3, "episodes", 1, "seed"], 1_000_003, "an episode appears twice"),
    ],
)
def test_bad_results_are_refused_by_name_before_anything_is_written(results, tmp_path, path, value, message):
    folder = tmp_path / "new"
    run_of(results, "forced")["evaluations"][3]["episodes"][1]["task"] = "push-v3"
    with pytest.raises(ResultsError, match=message):
        write_report(spoilt(results, path, value), folder)
    assert not folder.exists()
