"""The report: it stands alone, shows every number, says what is missing, and claims no more than the numbers
do."""

import base64
import copy
import json
import math
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from spatial_forcing.console import duration
from spatial_forcing.report import ResultsError, write_report
from spatial_forcing.report.page import render
from spatial_forcing.report.plots import colours, running_mean
from spatial_forcing.report.summary import summarise
from spatial_forcing.results import Results
from spatial_forcing.stats import mcnemar, wilson

STEPS = [100, 200, 300, 400]
PLOTS = ("action_loss", "heldout_error", "success", "closest_distance", "cosine", "gradient_ratio")


def episodes(successes: int, count: int = 25, distance: float = 0.1) -> list[dict]:
    """The first ``successes`` of the same episodes succeed; two tasks take turns."""
    return [
        {
            "task": ("reach-v3", "push-v3")[i % 2],
            "seed": 1_000_000 + i,
            "success": i < successes,
            "final_distance": distance + 0.001 * i,
            "closest_distance": distance / 2 + 0.001 * i,
            "steps": 40 + i,
        }
        for i in range(count)
    ]


def arm(role: str, errors: list[float], successes: list[int], steps: list[int] = STEPS, **more) -> dict:
    rows = [
        {
            "step": step,
            "action_loss": errors[-1] + 30 / (step + 40),
            "update_s": 0.2137,
            "dataloading_s": 0.0042,
        }
        for step in range(10, 401, 10)
    ]
    evaluations = [
        {"step": step, "heldout_error": error, "seconds": 12.5, "episodes": episodes(k, distance=error)}
        for step, error, k in zip(steps, errors, successes, strict=True)
    ]
    found = {"label": f"a {role}", "role": role, "seed": 7, "steps": 400, "parameters": 871_940}
    return found | {"curves": rows, "evaluations": evaluations, "videos": []} | more


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> Path:
    """Images and videos, as the demo leaves them on disk."""
    folder = tmp_path_factory.mktemp("media")
    Image.new("RGB", (8, 6), (200, 30, 30)).save(folder / "probe.png")
    Image.new("RGB", (6, 8), (30, 30, 200)).save(folder / "samples.png")
    for name in ("baseline", "forced"):
        (folder / name).mkdir()
        for i in range(2):
            write_video(folder / name / f"{i}.mp4")
    return folder


@pytest.fixture
def results(media, tmp_path) -> dict:
    """A finished comparison as the demo leaves it: forced 14/25, baseline 3/25, with images on disk."""
    shutil.copytree(media, tmp_path, dirs_exist_ok=True)
    videos = {name: {"videos": [f"{name}/0.mp4", f"{name}/1.mp4"]} for name in ("baseline", "forced")}
    arms = {
        "baseline": arm("arm", [0.264, 0.262, 0.259, 0.231], [0, 0, 1, 3], **videos["baseline"]),
        "forced": arm("arm", [0.263, 0.181, 0.1312, 0.1184], [0, 4, 9, 14], **videos["forced"]),
        "blind": arm("reference", [0.2573], [0], [400]),
        "state": arm("reference", [0.0231], [24], [400]),
    }
    for row in arms["forced"]["curves"]:
        row |= {"align_loss": 0.4, "cosine": 0.6, "gradient_ratio": 1.4, "valid_fraction": 1.0}
    return {
        "title": "Spatial Forcing demo",
        "created": "2026-01-02T03:04:05+00:00",
        "command": "spatial-forcing demo --out <folder>",
        "commit": "0123456789ab",
        "versions": {"torch": "2.11.0", "mujoco": "3.3.0"},
        "hardware": {"cpu": "a processor", "cores": 2, "memory_gib": 15.6, "gpu": None, "platform": "Linux"},
        "settings": {"episodes": 250, "learning_rate": 0.00125, "forcing": {"weight": 0.55, "views": [1, 2]}},
        "teacher": {"name": "vggt-tiny-sim", "fingerprint": "fe12", "licence": "Apache-2.0", "note": "small"},
        "timings": {"demonstrations": 71.3, "policies": 3723.0},
        "tasks": ["reach-v3", "push-v3"],
        "arms": arms,
        "probe": {
            "rows": [
                {
                    "name": "baseline",
                    "absrel": 0.1523,
                    "rmse_m": 0.2013,
                    "delta1": 0.8013,
                    "ridge": 0.0777,
                    "intervals": {
                        "absrel": [0.1311, 0.1737],
                        "rmse_m": [0.1812, 0.2214],
                        "delta1": [0.7715, 0.8316],
                    },
                    "differences": {"mean depth": {"absrel": -0.0206, "low": -0.0411, "high": -0.0012}},
                },
                {
                    "name": "forced",
                    "absrel": 0.0917,
                    "rmse_m": 0.1418,
                    "delta1": 0.9319,
                    "intervals": None,
                    "differences": {
                        "baseline": {"absrel": -0.0606, "low": None, "high": None},
                        "mean depth": {"absrel": -0.0812, "low": None, "high": None},
                    },
                },
                {"name": "mean depth", "absrel": 0.1729, "rmse_m": 0.2236, "delta1": 0.7421},
            ],
            "image": "probe.png",
            "train_frames": 720,
            "test_frames": 243,
            "test_episodes": 17,
        },
        "samples": [{"path": "samples.png", "caption": "four training frames"}],
        "comparisons": [["baseline", "forced"]],
    }


def write_video(path: Path) -> None:
    """A real film of four grey frames."""
    av = pytest.importorskip("av")
    np = pytest.importorskip("numpy")
    with av.open(str(path), "w") as film:
        stream = film.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for t in range(4):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), 60 * t, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())


class Page(HTMLParser):
    """Tags with their attributes, and the text a reader sees."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self._inside = ""
        self.feed(html)
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._inside = tag

    def handle_data(self, data):
        if self._inside != "style":
            self.words.append(data)
        if self._inside == "h2" and data.strip():
            self.headings.append(data.strip())

    def handle_endtag(self, tag):
        self._inside = ""

    def sources(self) -> list[str]:
        return [
            value
            for _, attrs in self.tags
            for key, value in attrs.items()
            if key in ("src", "href", "poster")
        ]


def report(results: dict, folder: Path) -> tuple[Page, dict]:
    """The files as they are written."""
    path = write_report(results, folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8")), json.loads(
        (folder / "report.json").read_text(), parse_constant=pytest.fail
    )


def summarised(results: dict) -> dict:
    """What ``report.json`` would hold."""
    return summarise(Results.checked(results, "results")).json_data()


def page_of(results: dict, folder: Path) -> Page:
    """The page without the plots, which take as long to draw as everything else together."""
    checked = Results.checked(results, "results")
    return Page(render(summarise(checked), checked, folder, dict.fromkeys(PLOTS)))


# ---- what is on the page -----------------------------------------------------------------------------------


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
    assert sum(source.startswith("data:image/svg+xml") for source in sources) == 6


def test_every_number_in_the_json_is_on_the_page(results, tmp_path):
    with_controls(results, 14, 5, 2)
    page, record = report(results, tmp_path)
    record.pop("plots")
    values = list(numbers(record))
    assert len(values) > 100
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
    # A rate is shown as its two counts, which are in the JSON too.
    elif isinstance(value, int | float) and not isinstance(value, bool) and not where.endswith(".rate"):
        yield where, value


def forms(where: str, value: float) -> list[str]:
    """How the page prints a number."""
    if ".timings" in where:
        return [duration(value)]
    if ".differences." in where:
        return [f"{value:+.3f}"]
    if where.endswith(".low"):
        return [f"({100 * value:.0f} to", f"95 % {100 * value:.0f} to"]
    if where.endswith(".high"):
        return [f"to {100 * value:.0f} %"]
    if where.endswith("_ms"):
        return [f"{value:.0f}"]
    if isinstance(value, int):
        return [str(value), f"{value:,}"]
    if where.endswith("_cm"):
        return [f"{value:.1f}"]
    return [str(value), f"{value:.3f}", f"{value:+.0f} points", f"p = {value:.2g}", f"{value:.1f} times"]


def test_the_blocks_come_in_order_and_say_how_to_read_them(results, tmp_path):
    page = page_of(results, tmp_path)
    expected = [
        "Results",
        "Training and evaluation",
        "Depth probe",
        "What the policies see",
        "Rollouts",
        "How it was made",
    ]
    assert page.headings == expected
    assert page.text.count("How to read this.") == 5
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
    comparison = record["comparisons"][0]
    assert comparison["p_value"] == paired.p_value
    assert (comparison["only_b"], comparison["only_a"], comparison["both"], comparison["neither"]) == (
        11,
        0,
        3,
        11,
    )
    assert comparison["reach"] == {"target": 0.231, "steps_a": 400, "steps_b": 200, "ratio": 2.0}


def test_final_loss_is_the_mean_of_the_last_tenth(results):
    record = summarised(results)
    rows = [row["action_loss"] for row in results["arms"]["forced"]["curves"] if row["step"] > 360]
    assert record["arms"]["forced"]["action_loss"] == pytest.approx(sum(rows) / 4)
    assert record["arms"]["forced"]["update_ms"] == pytest.approx(213.7)
    distances = [e["closest_distance"] for e in results["arms"]["forced"]["evaluations"][-1]["episodes"]]
    assert record["arms"]["forced"]["closest_distance_cm"] == pytest.approx(100 * sum(distances) / 25)


def test_equal_results_give_equal_files(results, tmp_path):
    write_report(results, tmp_path)
    first = [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")]
    write_report(results, tmp_path)
    assert first == [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")]
    assert not list(tmp_path.glob("*.tmp"))


def test_names_are_text_and_not_markup(results, tmp_path):
    results["arms"]["forced"]["label"] = "<script>alert(1)</script>"
    page = page_of(results, tmp_path)
    assert "<script>alert(1)</script>" in page.text
    assert "script" not in {tag for tag, _ in page.tags}


# ---- what it says ------------------------------------------------------------------------------------------


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


def with_controls(results: dict, forced: int, shuffled: int, place: int) -> str:
    """The headline of a comparison with controls; the baseline solves 3."""
    arms = results["arms"]
    errors = {"shuffled": [0.26, 0.2, 0.19, 0.18], "place": [0.25, 0.21, 0.17, 0.1071]}
    for name, count in (("shuffled", shuffled), ("place", place)):
        arms[name] = arm("control", errors[name], [0, 0, 0, count])
    arms["forced"]["evaluations"][-1]["episodes"] = episodes(forced)
    results["comparisons"] = None
    return summarised(results)["headline"]


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


# ---- what is missing ---------------------------------------------------------------------------------------


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


# ---- bad results -------------------------------------------------------------------------------------------


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
        (["arms", "forced", "steps"], ..., r"results\['arms'\]\['forced'\] has no 'steps'"),
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


# ---- drawing -----------------------------------------------------------------------------------------------


def test_colours_stay_with_the_arm_and_differ():
    names = ["forced", "baseline", "shuffled", "place", "blind", "state", "pixels", "weight 2", "oracle"]
    chosen = colours(names)
    assert len(set(chosen.values())) == len(names)
    assert colours(["baseline", "forced"])["forced"] == chosen["forced"]


def test_the_running_mean_keeps_constants_length_and_mean_of_ramps():
    assert running_mean([2.0] * 50) == pytest.approx([2.0] * 50)
    ramp = [float(i) for i in range(101)]
    smooth = running_mean(ramp)
    assert len(smooth) == 101
    assert smooth[10:-10] == pytest.approx(ramp[10:-10])


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (4.24, "4.2 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (125, "2 min 05 s"),
        (599.4, "9 min 59 s"),
        (725, "12 min"),
        (3723, "1 h 02 min"),
        (3599.7, "1 h 00 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text
