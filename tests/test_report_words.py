"""What a report says of a comparison: no more than the numbers do."""

import copy
import re

from small_results import add_arm, arm, episodes, page_of, run_of, summarised, with_controls, with_seeds

from spatial_forcing.report.markdown import markdown
from spatial_forcing.report.summary import summarise
from spatial_forcing.report.wording import number, signed
from spatial_forcing.results import Results


def test_the_headline_says_better_worse_and_neither_in_the_same_words(results):
    def verdict(forced: int) -> dict:
        run_of(results, "forced")["evaluations"][-1]["episodes"] = episodes(forced)
        return summarised(results)["verdict"]

    better = verdict(14)
    assert better["headline"].startswith("Forced succeeded more often than baseline. Whether a target that")
    assert better["shown"][0].startswith(
        "Forced succeeded more often than baseline: 14/25 (95 % 37 to 73 %) against 3/25 (4 to 30 %), "
        "difference +44 ("
    )
    assert better["shown"][0].endswith("points, p = 0.00098.")
    level = verdict(3)
    assert level["headline"].startswith(
        "That forced helps is not shown: no significant sign of more success than baseline."
    )
    assert level["not_shown"][0].startswith("That forced succeeds more often than baseline: 3/25")
    assert level["not_shown"][0].endswith("difference +0 points, p = 1.")
    run_of(results, "baseline")["evaluations"][-1]["episodes"] = episodes(14)
    assert verdict(2)["headline"].startswith("Forced succeeded less often than baseline.")


def test_a_gain_that_a_control_shares_is_not_called_the_teachers(results):
    other = copy.deepcopy(results)
    assert "a gain that has to do with the teacher's content" in with_controls(results, 14, 3, 3)
    compared = [(c["a"], c["b"]) for c in summarised(results)["comparisons"]]
    assert compared == [("baseline", "forced"), ("shuffled", "forced"), ("place", "forced")]
    shared = with_controls(other, 14, 12, 3)
    assert "Forced succeeded more often than baseline, but not significantly more so than shuffled" in shared
    assert "that the teacher's content brought the gain is not shown" in shared
    verdict = summarised(other)["verdict"]
    assert "That forced succeeds more often than shuffled: 14/25" in verdict["not_shown"][0]
    assert any(text.startswith("Forced succeeded more often than place") for text in verdict["shown"])


def test_a_control_below_the_baseline_makes_no_gain(results):
    assert with_controls(results, 16, 3, 3).startswith("Forced succeeded more often than baseline and than")
    run_of(results, "baseline")["evaluations"][-1]["episodes"] = episodes(14)
    headline = summarised(results)["verdict"]["headline"]
    assert headline.startswith("That forced helps is not shown: no significant sign of more success than")
    assert (
        "though it did better than shuffled and place; shuffled and place did worse than baseline."
        in headline
    )
    shown = summarised(results)["verdict"]["shown"]
    for control in ("Shuffled", "Place"):
        assert any(
            f"{control} itself did worse than baseline: that a wrong target costs" in one for one in shown
        )


def test_depth_that_is_better_by_one_measure_alone_is_not_called_shown(results):
    forced = next(row for row in results["probe"]["rows"] if row["name"] == "forced")
    forced["differences"]["baseline"] |= {"low": -0.08, "high": -0.04}
    said = summarised(results)
    assert any(text.startswith("Depth probe: depth is read better") for text in said["verdict"]["shown"])
    forced["rmse_m"] = 0.2113
    said = summarised(results)
    assert not any(text.startswith("Depth probe") for text in said["verdict"]["shown"])
    assert any("; by RMSE it is not (0.211 against 0.201)." in note for note in said["notes"])


def test_seeds_that_disagree_are_no_gain_whatever_the_pooled_test_says(results):
    """McNemar's test over 75 episodes is certain of these three policies; another seed may undo it."""
    counts = {"baseline": [5, 5, 5], "forced": [25, 4, 4], "blind": [0] * 3, "state": [24] * 3}
    results = with_seeds(results, counts, {name: [0.2, 0.21, 0.19] for name in counts})
    record = summarised(results)
    c = record["comparisons"][0]
    assert (c["only_b"], c["only_a"]) == (20, 2)
    assert c["p_holm"] < 0.001
    assert c["difference"]["low"] < 0 < c["difference"]["high"]
    assert "is not shown" in record["verdict"]["headline"]
    assert "the interval includes zero" in record["verdict"]["not_shown"][0]


def test_several_seeds_are_pooled_and_shown_one_by_one(results, tmp_path):
    counts = {"baseline": [3, 5, 4], "forced": [14, 13, 16], "blind": [0] * 3, "state": [24] * 3}
    errors = {
        "baseline": [0.2, 0.21, 0.19],
        "forced": [0.15, 0.161, 0.139],
        "blind": [0.3] * 3,
        "state": [0.1] * 3,
    }
    results = with_seeds(results, counts, errors)
    page, record = page_of(results, tmp_path), summarised(results)
    forced, c = record["arms"]["forced"], record["comparisons"][0]
    assert (forced["success"]["successes"], forced["success"]["episodes"]) == (43, 75)
    assert forced["heldout_error"] == sum(errors["forced"]) / 3
    assert c["by_seed"] == {"0": 44.0, "1": 32.0, "2": 48.0}
    assert (c["only_b"], c["only_a"]) == (31, 0)
    assert "+44 +32 +48" in page.text
    assert "0.150 0.161 0.139" in page.text
    assert record["verdict"]["headline"].endswith("3 seeds each.")
    later = summarised(results | {"seeds_added": [1, 2]})["verdict"]["headline"]
    assert "3 seeds each. Seeds 1 and 2 were added after results of the others were known; the tests" in later
    lower = "Forced had a lower action error on held-out demonstrations than baseline: 0.150 against 0.200"
    assert any(text.startswith(lower) for text in record["verdict"]["shown"])


def test_holms_correction_is_over_the_arms_that_were_compared_with_the_same_arm(results, tmp_path):
    add_arm(results, "pixels", arm("arm", [0.26, 0.25, 0.24, 0.23], [0, 0, 0, 10]))
    with_controls(results, 14, 3, 3)
    record = summarised(results)
    p = {(c["a"], c["b"]): (c["p_value"], c["p_holm"]) for c in record["comparisons"]}
    for control in ("baseline", "shuffled", "place"):
        forced, pixels = p[control, "forced"], p[control, "pixels"]
        assert forced[1] == 2 * forced[0]
        assert pixels == (pixels[0], max(pixels[0], forced[1]))
    assert "Holm: p = 0.002" in page_of(results, tmp_path).text


def test_what_it_would_take_is_told_in_episodes_and_seeds(results):
    with_controls(results, 6, 3, 3)
    (episodes_, seeds) = summarised(results)["verdict"]["takes"]
    assert episodes_.startswith(
        "Forced: 25 pairs of episodes show differences of 30 points or more (power 0.8"
    )
    assert re.search(r"To show the \+12 points seen against baseline takes about \d\d0? pairs", episodes_)
    assert seeds == "More seeds, three at least: one says nothing about other trainings."
    run_of(results, "baseline")["evaluations"][-1]["episodes"] = episodes(8)
    assert "Nothing was gained against baseline (-8 points)" in summarised(results)["verdict"]["takes"][0]


def test_gains_that_nobody_can_show_are_not_counted_out(results):
    with_controls(results, 6, 3, 3)
    for name, solved in (("baseline", range(500)), ("forced", range(1, 502))):
        rolled = episodes(0, 1000)
        for i in solved:
            rolled[i]["success"] = True
        run_of(results, name)["evaluations"][-1]["episodes"] = rolled
    said = summarised(results)["verdict"]["takes"][0]
    assert "The +0 points seen against baseline would take more than 10000 pairs to show." in said


def test_arms_of_which_the_same_is_not_shown_share_a_sentence(results):
    one = {key: value for key, value in copy.deepcopy(run_of(results, "forced")).items() if key != "arm"}
    add_arm(results, "other", {"label": "b", "role": "arm", **one})
    results["comparisons"] = [["baseline", "forced"], ["baseline", "other"]]
    for name, solved in (("baseline", 8), ("forced", 9), ("other", 9)):
        run_of(results, name)["evaluations"][-1]["episodes"] = episodes(solved)
    headline = summarised(results)["verdict"]["headline"]
    assert headline.startswith("That forced and other help is not shown: no significant sign of more success")
    assert headline.count("is not shown") == 1
    run_of(results, "other")["evaluations"][-1]["episodes"] = episodes(25)
    headline = summarised(results)["verdict"]["headline"]
    assert headline.startswith("That forced helps is not shown")
    assert "Other succeeded more often than baseline" in headline


def test_what_was_warned_of_stands_first_among_the_notes(results):
    results["warnings"] = ["wrong: plain, cameras: expected a; found b."]
    first = summarised(results)["notes"][0]
    assert first == "Warned of before it began: wrong: plain, cameras: expected a; found b."
    summary = summarise(Results.checked(results, "results"))
    assert "\n\nNotes:\n\n- Warned of before it began: wrong: plain, cameras: expected a" in markdown(summary)
    for note in summary.notes:
        assert f"\n- {note}\n" in markdown(summary), "the page has it, too"


def test_one_measurement_says_nothing_about_steps(results):
    said = [note for note in summarised(results)["notes"] if note.startswith("Steps to the final")]
    assert len(said) == 1
    for name in ("baseline", "forced"):
        del run_of(results, name)["evaluations"][:-1]
    assert not [note for note in summarised(results)["notes"] if note.startswith("Steps to the final")]
    assert all(pair["steps_to_target"] is None for pair in summarised(results)["comparisons"])


def test_what_holds_for_several_comparisons_is_said_once(results, tmp_path):
    with_controls(results, 0, 0, 0)
    run_of(results, "baseline")["evaluations"][-1]["episodes"] = episodes(0)
    for name, error in (("baseline", 0.2571), ("shuffled", 0.26)):
        run_of(results, name)["evaluations"][-1]["heldout_error"] = error
    assert summarised(results)["notes"] == [
        "None of forced, baseline, shuffled and place solved an episode.",
        "Steps to the final held-out error of another arm, its own over those of forced, above 1 where "
        "forced is there sooner: baseline (0.257) 3.73; shuffled (0.260) < 0.96; place (0.107) < 1.00 (a "
        "bound where a seed was never there, or at its first measurement already).",
        "Baseline and shuffled are hardly better than the blind policy by their action error (0.257, 0.260 "
        "against 0.257): in 400 steps they have not learned to use their images. How they would do with "
        "more steps, this run cannot say.",
    ]
    text = page_of(results, tmp_path).text
    assert text.count("McNemar's exact test looks only at") == 1
    for control in ("baseline", "shuffled", "place"):
        assert f"forced against {control} 400 0 0 0 25 +0" in text


def test_a_gain_over_a_control_alone_is_called_what_it_is(results):
    with_controls(results, 14, 3, 3)
    results["comparisons"] = [["shuffled", "forced"]]
    verdict = summarised(results)["verdict"]
    assert verdict["headline"].startswith(
        "Forced succeeded more often than shuffled, and was compared with no"
    )
    assert verdict["shown"]


def test_without_controls_the_verdict_says_so(results):
    assert "no control was compared" in summarised(results)["verdict"]["not_shown"][-1]


def test_one_seed_is_called_a_demonstration_and_different_seeds_are_not_compared(results):
    assert summarised(results)["verdict"]["headline"].endswith("One seed (7): a demonstration, not evidence.")
    run_of(results, "forced")["seed"] = 8
    assert "they have no seed in common" in summarised(results)["verdict"]["headline"]


def test_what_predicting_the_mean_comes_to_is_said(results, tmp_path):
    errors = {run["arm"]: run["evaluations"][-1]["heldout_error"] for run in results["runs"]}
    constant = round((min(errors.values()) + max(errors.values())) / 2, 4)
    for run in results["runs"]:
        for evaluation in run["evaluations"]:
            evaluation["constant_error"] = constant
    note = next(one for one in summarised(results)["notes"] if "mean action" in one)
    said, _, worse = note.partition(": ")
    assert said.endswith(f"has a held-out error of {number(constant)}")
    assert {name for name in errors if name in worse.lower()} == {
        name for name, error in errors.items() if error >= constant
    }
    assert "more steps come before any comparison" in worse
    page = page_of(results, tmp_path)
    assert f"Predicting the mean action always has one of {number(constant)}" in page.text


def test_a_policy_at_the_blind_line_is_said_to_be_there(results):
    assert not any("hardly better" in note for note in summarised(results)["notes"])
    run_of(results, "baseline")["evaluations"][-1]["heldout_error"] = 0.2572
    notes = " ".join(summarised(results)["notes"])
    assert (
        "Baseline is hardly better than the blind policy by its action error (0.257 against 0.257)" in notes
    )
    assert "Forced is hardly better" not in notes
    run_of(results, "state")["evaluations"][-1]["heldout_error"] = 0.25
    assert "Knowing the true state helps little" in " ".join(summarised(results)["notes"])


def test_a_policy_that_gains_nothing_over_the_mean_depth_is_said_to(results):
    assert not any("Depth probe" in note for note in summarised(results)["notes"])
    baseline, _, mean = results["probe"]["rows"]
    baseline["absrel"] = mean["absrel"]
    (note,) = (note for note in summarised(results)["notes"] if "Depth probe" in note)
    assert "baseline 0.173." in note
    assert "forced" not in note


def test_a_depth_gain_is_shown_unless_a_control_has_it_too(results):
    forced = results["probe"]["rows"][1]
    forced["differences"]["baseline"] |= {"low": -0.07, "high": -0.05}
    assert (
        "from the tokens of forced than from those of baseline" in summarised(results)["verdict"]["shown"][-1]
    )
    with_controls(results, 14, 3, 3)
    control = copy.deepcopy(forced) | {"name": "shuffled"}
    results["probe"]["rows"].append(control)
    record = summarised(results)
    assert not any("Depth probe" in text for text in record["verdict"]["shown"])
    assert any("so do those of a control (shuffled" in note for note in record["notes"])


def test_a_gain_that_other_episodes_could_undo_is_said_to_be_none(results):
    results["probe"]["rows"][0]["differences"]["mean depth"]["high"] = 0.0003
    (note,) = (note for note in summarised(results)["notes"] if "Depth probe" in note)
    assert "baseline 0.152." in note
    assert "not by more than other held-out episodes could change" in note


def test_the_probe_is_shown_with_intervals_and_paired_differences(results, tmp_path):
    page = page_of(results, tmp_path)
    assert "0.152 (0.131 to 0.174)" in page.text
    assert "-0.021 (-0.041 to -0.001)" in page.text
    assert "of 17 other episodes. In brackets: 95 % bootstrap intervals" in page.text
    assert "AbsRel minus that of baseline" in page.text


def test_probes_from_before_there_were_intervals_are_shown_without(results, tmp_path):
    for row in results["probe"]["rows"]:
        row.pop("intervals", None)
        row.pop("differences", None)
    del results["probe"]["test_episodes"]
    page = page_of(results, tmp_path)
    assert "bootstrap intervals over those episodes" not in page.text
    assert "AbsRel minus" not in page.text
    assert "0.152" in page.text


def test_a_target_never_reached_gets_a_bound_and_no_ratio(results, tmp_path):
    for evaluation in run_of(results, "forced")["evaluations"]:
        evaluation["heldout_error"] = 0.26
    page, record = page_of(results, tmp_path), summarised(results)
    reach = record["comparisons"][0]["steps_to_target"]
    assert (reach["a"], reach["b"], reach["ratio"], reach["bounds"]) == (
        {"7": "400"},
        {"7": "> 400"},
        "< 1.00",
        1,
    )
    assert "sooner: baseline (0.231) < 1.00" in page.text


def test_data_to_target_is_a_bound_for_an_arm_that_never_gets_there(results, tmp_path):
    whole, results["runs"] = results["runs"], []
    errors = {"baseline": (0.3, 0.25), "forced": (0.24, 0.2), "blind": (0.4, 0.4), "state": (0.1, 0.1)}
    for run in whole:
        for fraction, error in zip((0.25, 0.5), errors[run["arm"]], strict=True):
            part = copy.deepcopy(run) | {"fraction": fraction, "train_episodes": round(240 * fraction)}
            part["evaluations"][-1]["heldout_error"] = error
            results["runs"].append(part)
        run["train_episodes"] = 240
    results["runs"] += whole
    c = summarised(results)["comparisons"][0]["data_to_target"]
    assert (c["unit"], c["target"], c["a"], c["b"]) == ("episodes", 0.231, {"7": "240"}, {"7": "73"})
    assert c["ratio"] == "3.27"  # 0.231 is between 0.24 at 60 episodes and 0.2 at 120
    for run in results["runs"]:
        if run["arm"] == "forced":
            run["evaluations"][-1]["heldout_error"] = 0.26
    c = summarised(results)["comparisons"][0]["data_to_target"]
    assert (c["b"], c["ratio"]) == ({"7": "> 240"}, "< 1.00")
    page = page_of(results, tmp_path)
    assert "Data efficiency" in page.headings
    by_data = summarised(results)["plots"]["success_by_data"]["forced"]
    assert {amount: (rate["successes"], rate["episodes"]) for amount, rate in by_data.items()} == {
        "60": (14, 25),
        "120": (14, 25),
        "240": (14, 25),
    }
    assert "14/25 (37 to 73 %) 14/25 (37 to 73 %) 14/25 (37 to 73 %)" in page.text


def test_arms_without_success_are_said_to_be_indistinguishable(results):
    for name in ("baseline", "forced"):
        run_of(results, name)["evaluations"][-1]["episodes"] = episodes(0)
    assert "Neither forced nor baseline solved an episode." in summarised(results)["notes"]


def test_an_interval_that_ends_just_below_zero_is_printed_as_one():
    assert [signed(value) for value in (-0.0001, 0.0001, 0.0, -0.0)] == [
        "-0.000",
        "+0.000",
        "+0.000",
        "+0.000",
    ]
