"""The files of results: one class writes and reads each, and says by name what is wrong with one."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from spatial_forcing.report import ResultsError, write_report
from spatial_forcing.results import CurveRow, Episode, Evaluation, Results

# Written by the demo before results had classes: 12 demonstrations, 20 steps, 2 rollouts.
EARLIER = Path(__file__).parent / "data" / "results_before_records.json"


def earlier() -> dict[str, Any]:
    return json.loads(EARLIER.read_text())


def measured(value: Any) -> Any:
    """The same data without None."""
    if isinstance(value, dict):
        return {key: measured(item) for key, item in value.items() if item is not None}
    return [measured(item) for item in value] if isinstance(value, list) else value


def test_results_of_earlier_versions_are_read_whole_and_drawn(tmp_path):
    found = Results.read(EARLIER)
    assert list(found.arms) == ["baseline", "forced", "shuffled", "place", "blind", "state"]
    found.save(tmp_path / "results.json")
    saved, was = json.loads((tmp_path / "results.json").read_text()), earlier()
    was["probe"] |= {"image": was["probe"].pop("picture"), "depth": None}  # its name then, and not said
    was |= {"probe_sites": None, "warnings": [], "seeds_added": []}
    arms, runs = saved.pop("arms"), saved.pop("runs")
    for run, (name, arm) in zip(runs, was.pop("arms").items(), strict=True):
        assert measured(run | arms[name]) == measured(arm) | {"arm": name, "fraction": 1.0, "differs": []}
    assert saved == was
    again = Results.read(tmp_path / "results.json")
    assert again.plain() == found.plain()
    page = write_report(found, tmp_path).read_text()
    assert found.arms["forced"].label in page
    assert not list(tmp_path.glob("*.tmp"))


def test_what_is_written_is_read_back(tmp_path):
    episodes = [Episode(task="reach-v3", seed=i, success=bool(i), steps=4) for i in range(2)]
    one = Evaluation(step=3, heldout_error=0.25, episodes=episodes, videos=["videos/0.mp4"], seconds=1.5)
    one.save(tmp_path / "eval" / "000003.json")
    assert Evaluation.read(tmp_path / "eval" / "000003.json") == one


def test_everything_that_was_logged_is_kept_and_what_was_not_is_left_out():
    logged = {"step": 10, "action_loss": 0.5, "loss": 0.75, "grad_norm": 1.25, "lr": 0.001}
    assert CurveRow.checked(logged, "metrics").plain() == logged


def test_a_number_that_diverged_survives_the_file(tmp_path):
    results = Results.checked(earlier(), "results")
    results.runs_of("forced")[0].evaluations[-1].heldout_error = math.nan
    results.save(tmp_path / "results.json")
    again = Results.read(tmp_path / "results.json")
    assert math.isnan(again.runs_of("forced")[0].evaluations[-1].heldout_error)


def test_a_damaged_evaluation_is_named_with_its_key_and_what_to_do(tmp_path):
    path = tmp_path / "000003.json"
    wrong = {"step": 3, "episodes": [{"task": "reach-v3", "seed": 1, "success": "yes"}]}
    path.write_text(json.dumps(wrong))
    says = r"000003.json: 000003\['episodes'\]\[0\]\['success'\] must be bool, got str: 'yes'. Remove it."
    with pytest.raises(ResultsError, match=says):
        Evaluation.read(path, "Remove it.")
    path.write_text("{")
    with pytest.raises(ResultsError, match=r"000003.json is damaged.*Remove it\."):
        Evaluation.read(path, "Remove it.")


def test_one_message_even_if_much_is_wrong():
    with pytest.raises(ResultsError) as raised:
        Results.checked({"title": 3, "arms": []}, "results")
    assert str(raised.value) == "results['title'] must be str, got int: '3'."


def test_without_pydantic_the_message_says_what_to_install():
    program = (
        "import sys; sys.modules['pydantic'] = None\n"
        "from spatial_forcing.errors import MissingDependencyError\n"
        "try: import spatial_forcing.results\n"
        "except MissingDependencyError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=100
    )
    assert (
        done.stdout.strip()
        == 'This needs pydantic. Install it with: pip install "lerobot_policy_spatial_forcing[report]"'
    )
