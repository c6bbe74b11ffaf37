"""What a report says of a comparison: no more than the numbers do."""

import copy

from small_results import episodes, page_of, summarised, with_controls


def test_the_headline_says_better_worse_and_neither_in_the_same_words(results):
    def headline(forced: int) -> str:
        results["arms"]["forced"]["evaluations"][-1]["episodes"] = episodes(forced)
        return summarised(results)["headline"]

    better = headline(14)
    assert better.startswith(
        "Forced succeeded more often than baseline: forced 14/25 (95 % 37 to 73 %) against baseline 3/25 "
        "(4 to 30 %), p = 0.00098 (McNemar's exact test on the same 25 episodes), teacher vggt-tiny-sim."
    )
    assert headline(3).startswith(
        "No significant difference in success between forced and baseline: forced 3/25"
    )
    assert "p = 1 " in headline(3)
    results["arms"]["baseline"]["evaluations"][-1]["episodes"] = episodes(14)
    assert headline(2).startswith("Forced succeeded less often than baseline: forced 2/25")


def test_a_gain_that_a_control_shares_is_not_called_the_teachers(results):
    assert "so its gain has to do with the teacher's content" in with_controls(results, 14, 3, 3)
    shared = with_controls(results, 14, 12, 3)
    assert "did not succeed significantly more often than shuffled, of the controls" in shared
    assert "that the teacher's content brought the gain is not shown" in shared
    assert "shuffled 12/25 (30 to 67 %), p = 0.5" in shared
    assert "Nor is it shown to be ahead of the controls" in with_controls(results, 3, 3, 3)
    compared = [(c["a"], c["b"]) for c in summarised(results)["comparisons"]]
    assert compared == [("baseline", "forced"), ("shuffled", "forced"), ("place", "forced")]


def test_what_holds_for_several_comparisons_is_said_once(results, tmp_path):
    with_controls(results, 0, 0, 0)
    results["arms"]["baseline"]["evaluations"][-1]["episodes"] = episodes(0)
    for name, error in (("baseline", 0.2571), ("shuffled", 0.26)):
        results["arms"][name]["evaluations"][-1]["heldout_error"] = error
    notes = summarised(results)["notes"]
    assert notes == [
        "Action error on held-out demonstrations at step 400: forced 0.118, baseline 0.257, shuffled 0.260, "
        "place 0.107. Forced reached the last error of baseline (0.257) at step 200, baseline itself at step "
        "400: 2.0 times as many steps, no finer than the evaluations are spaced. Forced never reached the "
        "last error of place (0.107), so there is no ratio of steps. Shuffled (0.260) was at its last error "
        "at its first evaluation already: no ratio of steps.",
        "None of forced, baseline, shuffled and place solved an episode.",
        "Baseline and shuffled are hardly better than the blind policy by their action error (0.257, 0.260 "
        "against 0.257): in 400 steps they have not learned to use their images. How they would do with "
        "more steps, this run cannot say.",
        "The p-values are not corrected for 3 comparisons.",
    ]
    headings = page_of(results, tmp_path).text
    assert headings.count("enter McNemar's exact test") == 1
    for control in ("baseline", "shuffled", "place"):
        assert f"forced against {control} 400 0 0 0 25 +0 points p = 1" in headings


def test_several_targets_are_reached_in_one_sentence(results):
    with_controls(results, 14, 3, 3)
    (note,) = (note for note in summarised(results)["notes"] if note.startswith("Action error"))
    assert (
        "Forced reached the last error of baseline (0.231) at step 200, baseline itself at step 400: 2.0 "
        "times as many steps; of shuffled (0.180) at step 300, shuffled itself at step 400: 1.3 times as "
        "many steps, no finer than the evaluations are spaced. Forced never reached the last error of place "
        "(0.107), so there is no ratio of steps."
    ) in note


def test_without_controls_the_headline_says_so(results):
    assert "No control was compared" in summarised(results)["headline"]


def test_one_seed_is_called_a_demonstration(results):
    assert summarised(results)["headline"].endswith("One seed (7): a demonstration, not evidence.")
    results["arms"]["forced"]["seed"] = 8
    assert "different seeds (7, 8)" in summarised(results)["headline"]


def test_a_policy_at_the_blind_line_is_said_to_be_there(results):
    assert not any("hardly better" in note for note in summarised(results)["notes"])
    results["arms"]["baseline"]["evaluations"][-1]["heldout_error"] = 0.2572
    notes = " ".join(summarised(results)["notes"])
    assert (
        "Baseline is hardly better than the blind policy by its action error (0.257 against 0.257)" in notes
    )
    assert "Forced is hardly better" not in notes
    results["arms"]["state"]["evaluations"][-1]["heldout_error"] = 0.25
    assert "Knowing the true state helps little" in " ".join(summarised(results)["notes"])


def test_a_policy_that_gains_nothing_over_the_mean_depth_is_said_to(results):
    assert not any("Depth probe" in note for note in summarised(results)["notes"])
    baseline, _, mean = results["probe"]["rows"]
    baseline["absrel"] = mean["absrel"]
    (note,) = (note for note in summarised(results)["notes"] if "Depth probe" in note)
    assert "baseline 0.173." in note
    assert "forced" not in note


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
    assert "AbsRel less that of baseline" in page.text


def test_probes_from_before_there_were_intervals_are_shown_without(results, tmp_path):
    for row in results["probe"]["rows"]:
        row.pop("intervals", None)
        row.pop("differences", None)
    del results["probe"]["test_episodes"]
    page = page_of(results, tmp_path)
    assert "bootstrap" not in page.text
    assert "AbsRel less" not in page.text
    assert "0.152" in page.text


def test_a_target_never_reached_gets_no_ratio(results, tmp_path):
    for evaluation in results["arms"]["forced"]["evaluations"]:
        evaluation["heldout_error"] = 0.26
    page, record = page_of(results, tmp_path), summarised(results)
    assert record["comparisons"][0]["reach"]["ratio"] is None
    assert (
        "Forced never reached the last error of baseline (0.231), so there is no ratio of steps." in page.text
    )


def test_arms_without_success_are_said_to_be_indistinguishable(results):
    for name in ("baseline", "forced"):
        results["arms"][name]["evaluations"][-1]["episodes"] = episodes(0)
    assert "Neither forced nor baseline solved an episode." in summarised(results)["notes"]


def test_several_comparisons_are_all_tested_and_the_lack_of_correction_is_said(results):
    results["arms"]["pixels"] = copy.deepcopy(results["arms"]["baseline"]) | {"label": "pixels as target"}
    results["comparisons"] = None
    record = summarised(results)
    assert [(c["a"], c["b"]) for c in record["comparisons"]] == [
        ("baseline", "forced"),
        ("baseline", "pixels"),
    ]
    assert "The p-values are not corrected for 2 comparisons." in record["notes"]
