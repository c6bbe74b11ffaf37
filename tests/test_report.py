"""The report's page: it stands alone, shows every number, and says how to read it."""

import base64
import re

import pytest
from small_results import page_of, report, run_of, summarised, with_controls

from spatial_forcing.console import duration
from spatial_forcing.report import write_report
from spatial_forcing.stats import mcnemar, wilson


def test_the_page_stands_alone(results, tmp_path):
    page, _ = report(results, tmp_path)
    sources = page.sources()
    assert all(source.startswith("data:") for source in sources)
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.tags}
    raw = (tmp_path / "report.html").read_text()
    assert "url(" not in raw
    assert "@import" not in raw
    for name in ("probe.png", "samples.png", "baseline/0.mp4", "forced/1.mp4"):
        encoded = base64.b64encode((tmp_path / name).read_bytes()).decode()
        assert any(source.endswith(encoded) for source in sources), name
    assert sum(tag == "video" for tag, _ in page.tags) == 4
    # Every figure and every table lies beside the page, and in it to be taken out.
    for kind, folder in (("svg", "figures"), ("csv", "tables")):
        files = {path.name: path.read_bytes() for path in (tmp_path / folder).iterdir()}
        taken = {a["download"]: a["href"] for tag, a in page.tags if tag == "a" and "download" in a}
        assert len(files) >= 8
        assert files.keys() == {name for name in taken if name.endswith(kind)} | (
            {"against_plain.csv"} if kind == "csv" else set()
        )
        for name in files.keys() & taken.keys():
            assert base64.b64decode(taken[name].split(",")[1]) == files[name]


def test_every_number_in_the_json_is_on_the_page(results, tmp_path):
    with_controls(results, 14, 5, 2)
    page, record = report(results, tmp_path)
    record.pop("plots")
    values = list(numbers(record))
    assert len(values) > 150
    for where, value in values:
        shown = "|".join(map(re.escape, forms(where, value)))
        assert re.search(rf"(?<![\d.])(?:{shown})(?!\.?\d)", page.text), f"{where} = {value}"


def numbers(value, where: str = ""):
    if isinstance(value, dict):
        for key, item in value.items():
            yield from numbers(item, f"{where}.{key}")
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from numbers(item, f"{where}[{i}]")
    # A rate is shown as its two counts; variances and levels are what shown numbers were computed with, and
    # what would be needed is said of what is not shown alone.
    elif (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and not (where.endswith((".rate", ".bounds", ".level", ".needed")) or ".variance." in where)
    ):
        yield where, value


def forms(where: str, value: float) -> list[str]:
    """How the page prints a number."""
    if ".timings" in where:
        return [duration(value)]
    if ".errors.difference." in where or ".differences." in where or ".errors.by_seed" in where:
        return [f"{value:+.3f}"]
    if "_ratio." in where or ".ratio." in where:
        return [f"{value:.2f}"]
    if ".difference." in where or ".by_seed." in where:
        return [f"{value:+.0f}"]
    if where.endswith(".low"):
        return [f"({100 * value:.0f} to", f"95 % {100 * value:.0f} to"]
    if where.endswith(".high"):
        return [f"to {100 * value:.0f} %"]
    if where.endswith(("_ms", "_mb", ".detectable")):
        return [f"{value:.0f}"]
    if where.endswith(".fraction"):
        return [f"{100 * value:g} %"]
    if isinstance(value, int):
        return [str(value), f"{value:,}"]
    if where.endswith("_cm"):
        return [f"{value:.1f}"]
    return [str(value), f"{value:.3f}", f"p = {value:.2g}"]


def test_the_blocks_come_in_order_and_say_how_to_read_them(results, tmp_path):
    page = page_of(results, tmp_path)
    expected = [
        "Results",
        "Training and evaluation",
        "Cost of training",
        "Depth probe",
        "Samples of the data",
        "Rollouts",
        "What differs between the arms",
        "How it was made",
    ]
    assert page.headings == expected
    assert page.text.count("How to read this.") == 6
    for words in (
        "vggt-tiny-sim",
        "Apache-2.0",
        "spatial-forcing demo --out <folder>",
        "mujoco",
        "forcing.weight 0.55",
    ):
        assert words in page.text
    assert "forcing.views 1, 2" in page.text
    assert "in all 1 h 03 min" in page.text


def test_intervals_and_tests_are_those_of_stats(results, tmp_path):
    page, record = page_of(results, tmp_path), summarised(results)
    for name, k in (("baseline", 3), ("forced", 14), ("blind", 0), ("state", 24)):
        rate, found = wilson(k, 25), record["arms"][name]["success"]
        assert (found["low"], found["high"], found["successes"]) == (rate.low, rate.high, k)
        assert f"{k}/25 ({100 * rate.low:.0f} to {100 * rate.high:.0f} %)" in page.text
    pushes = record["arms"]["forced"]["tasks"]["push-v3"]
    assert (pushes["successes"], pushes["episodes"]) == (7, 12)
    paired = mcnemar([i < 3 for i in range(25)], [i < 14 for i in range(25)])
    c = record["comparisons"][0]
    assert c["p_value"] == c["p_holm"] == paired.p_value
    assert (c["only_b"], c["only_a"], c["both"], c["neither"]) == (11, 0, 3, 11)
    reach = c["steps_to_target"]
    # 0.231 is reached between 0.263 at step 100 and 0.181 at step 200.
    assert (reach["target"], reach["a"], reach["b"], reach["ratio"]) == (
        0.231,
        {"7": "400"},
        {"7": "139"},
        "2.88",
    )


def test_final_loss_is_the_mean_of_the_last_tenth(results):
    record, run = summarised(results), run_of(results, "forced")
    rows = [row["action_loss"] for row in run["curves"] if row["step"] > 360]
    assert record["arms"]["forced"]["action_loss"] == pytest.approx(sum(rows) / 4)
    distances = [e["closest_distance"] for e in run["evaluations"][-1]["episodes"]]
    assert record["arms"]["forced"]["closest_distance_cm"] == pytest.approx(100 * sum(distances) / 25)


def test_cost_is_as_measured_or_else_as_logged_and_its_ratio_is_to_the_plain_arm(results):
    run_of(results, "forced")["seconds_per_step"] = 0.25
    record = summarised(results)
    cost = record["arms"]["forced"]["cost"]
    assert record["arms"]["baseline"]["cost"]["update_ms"] == pytest.approx(213.7)
    assert cost["update_ms"] == 250
    assert cost["update_ratio"]["value"] == pytest.approx(250 / 213.7)
    assert cost["peak_memory_ratio"]["value"] == pytest.approx(1.05)
    assert record["arms"]["blind"]["cost"]["peak_memory_ratio"] is None


def test_equal_results_give_equal_files(results, tmp_path):
    def files() -> dict:
        write_report(results, tmp_path)
        return {path.name: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    assert files() == files()
    assert not list(tmp_path.rglob("*.tmp"))


def test_names_are_text_and_not_markup(results, tmp_path):
    results["arms"]["forced"]["label"] = "<script>alert(1)</script>"
    page = page_of(results, tmp_path)
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.tags}


def test_a_held_out_loss_that_is_the_error_is_not_shown_twice(results, tmp_path):
    for run in results["runs"]:
        for evaluation in run["evaluations"]:
            evaluation["heldout_loss"] = evaluation["heldout_error"]
    assert "Held-out loss" not in report(results, tmp_path)[0].text
    run_of(results, "forced")["evaluations"][-1]["heldout_loss"] += 0.5
    assert "Held-out loss" in report(results, tmp_path)[0].text
