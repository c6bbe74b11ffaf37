"""A finished comparison as the demo leaves it, and the report made of it."""

import copy
import json
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from spatial_forcing.report import write_report
from spatial_forcing.report.page import render
from spatial_forcing.report.summary import summarise
from spatial_forcing.results import Results

STEPS = [100, 200, 300, 400]
PLOTS = ("action_loss", "heldout_error", "success", "closest_distance_cm", "cosine", "gradient_ratio")


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


def run_of(results: dict, name: str, seed: int | None = None) -> dict:
    """The run of an arm, of its first seed unless another is asked for."""
    return next(run for run in results["runs"] if run["arm"] == name and seed in (None, run["seed"]))


def add_arm(results: dict, name: str, one: dict) -> None:
    """Adds an arm with its run."""
    head = {key: one.pop(key) for key in ("label", "role")}
    results["arms"][name] = head | {"differs": [f"--policy.forcing.control={name}"]}
    results["runs"].append({"arm": name} | one)


def with_seeds(results: dict, successes: dict[str, list[int]], errors: dict[str, list[float]]) -> dict:
    """The same comparison with several seeds: successes and errors at the end, seed by seed."""
    runs = []
    for name in results["arms"]:
        for seed, (k, error) in enumerate(zip(successes[name], errors[name], strict=True)):
            one = copy.deepcopy(run_of(results, name)) | {"seed": seed}
            one["evaluations"][-1] |= {"episodes": episodes(k), "heldout_error": error}
            runs.append(one)
    return results | {"runs": runs, "comparisons": None}


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


def write_media(folder: Path) -> Path:
    """Images and videos, as the demo leaves them on disk."""
    Image.new("RGB", (8, 6), (200, 30, 30)).save(folder / "probe.png")
    Image.new("RGB", (6, 8), (30, 30, 200)).save(folder / "samples.png")
    for name in ("baseline", "forced"):
        (folder / name).mkdir()
        for i in range(2):
            write_video(folder / name / f"{i}.mp4")
    return folder


def finished() -> dict:
    """A finished comparison as the demo leaves it: forced 14/25, baseline 3/25."""
    videos = {name: {"videos": [f"{name}/0.mp4", f"{name}/1.mp4"]} for name in ("baseline", "forced")}
    arms = {
        "baseline": arm("arm", [0.264, 0.262, 0.259, 0.231], [0, 0, 1, 3], **videos["baseline"]),
        "forced": arm("arm", [0.263, 0.181, 0.1312, 0.1184], [0, 4, 9, 14], **videos["forced"]),
        "blind": arm("reference", [0.2573], [0], [400]),
        "state": arm("reference", [0.0231], [24], [400]),
    }
    arms["forced"] |= {"peak_memory_mb": 1260.0}
    arms["baseline"] |= {"peak_memory_mb": 1200.0}
    for row in arms["forced"]["curves"]:
        row |= {"align_loss": 0.4, "cosine": 0.6, "gradient_ratio": 1.4, "valid_fraction": 1.0}
    results = {
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
        "arms": {},
        "runs": [],
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
        "probe_sites": {
            "stacks": {
                "blocks": {
                    name: [
                        {
                            "layer": layer,
                            "absrel": absrel - 0.01 * layer,
                            "low": absrel - 0.05,
                            "high": absrel,
                        }
                        for layer in (1, 2)
                    ]
                    for name, absrel in (("baseline", 0.17), ("forced", 0.11))
                }
            },
            "lines": {"mean depth": 0.1729},
            "aligned": {"baseline": 2, "forced": 2},
            "depth": {"name": "recorded geometry", "kind": "recorded", "unit": "m", "far": 3.0},
        },
        "samples": [{"path": "samples.png", "caption": "four training frames"}],
        "comparisons": [["baseline", "forced"]],
    }
    for name, one in arms.items():
        add_arm(results, name, one)
    return results


def with_controls(results: dict, forced: int, shuffled: int, place: int) -> str:
    """The headline of a comparison with controls; the baseline solves 3."""
    errors = {"shuffled": [0.26, 0.2, 0.19, 0.18], "place": [0.25, 0.21, 0.17, 0.1071]}
    for name, count in (("shuffled", shuffled), ("place", place)):
        add_arm(results, name, arm("control", errors[name], [0, 0, 0, count]))
    run_of(results, "forced")["evaluations"][-1]["episodes"] = episodes(forced)
    results["comparisons"] = None
    return summarised(results)["verdict"]["headline"]


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
    return Page(render(summarise(checked), checked, folder, dict.fromkeys(PLOTS), {}))
