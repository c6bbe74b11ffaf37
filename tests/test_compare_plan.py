"""What a comparison is made of: splits of episodes, runs, a folder; before anything runs."""

import json
import sys
from dataclasses import replace
from io import StringIO
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from small_comparison import comparison

from spatial_forcing.compare.arm import Arm
from spatial_forcing.compare.flags import CompareError
from spatial_forcing.compare.folder import comparison_in, take_folder
from spatial_forcing.compare.gather import evaluations_of, warnings_of
from spatial_forcing.compare.launch import Launch
from spatial_forcing.compare.plan import Comparison, Measures, Run, folder_of
from spatial_forcing.compare.preflight import Looked, check_shared
from spatial_forcing.compare.run import evaluation_path
from spatial_forcing.compare.split import Split, split_episodes
from spatial_forcing.compare.status import Progress, is_over, seconds_left, status_table, work_done
from spatial_forcing.errors import MissingDependencyError, SpatialForcingError, UnknownNameError
from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.evaluation.guards.look import Guarded
from spatial_forcing.files import write_json
from spatial_forcing.results import Evaluation

# ---- episodes ----------------------------------------------------------------------------------------------

tasks = st.lists(st.sampled_from("abc"), min_size=4, max_size=40).map(lambda names: dict(enumerate(names)))


@given(tasks, st.floats(0.05, 0.4), st.integers(0, 9))
def test_held_out_episodes_are_of_every_task_and_in_no_share(by_episode, holdout, seed):
    counts = {task: list(by_episode.values()).count(task) for task in by_episode.values()}
    if min(counts.values()) < 2:
        return
    split = split_episodes(by_episode, holdout=holdout, seed=seed)
    assert {*split.train} | {*split.heldout} == by_episode.keys()
    assert not {*split.train} & {*split.heldout}
    assert {by_episode[e] for e in split.heldout} == set(counts)
    shares = [split.share(fraction) for fraction in (0.1, 0.3, 0.6, 1.0)]
    for smaller, larger in pairwise(shares):
        assert {*smaller} <= {*larger}
    assert shares[-1] == sorted(split.train)
    assert split == split_episodes(by_episode, holdout=holdout, seed=seed)


def test_named_episodes_are_held_out():
    split = split_episodes(dict.fromkeys(range(6), "reach"), heldout=[4, 1])
    assert split.heldout == (1, 4)
    assert sorted(split.train) == [0, 2, 3, 5]


@pytest.mark.parametrize(
    ("episodes", "options", "says"),
    [
        (1, {}, "Of 1 episodes 1 would be held out and 0 trained on"),
        (3, {"heldout": [7]}, r"names 7, which is not among the episodes of the data set \(0 to 2\)"),
        (3, {"heldout": [0, 1, 2]}, "0 trained on"),
        (3, {"holdout": 0.0}, "above 0 and below 1; got 0.0"),
        (3, {"holdout": 1.5}, "got 1.5"),
    ],
)
def test_splits_that_cannot_be(episodes, options, says):
    with pytest.raises(CompareError, match=says):
        split_episodes(dict.fromkeys(range(episodes), "reach"), **options)


# ---- the whole ---------------------------------------------------------------------------------------------


def test_every_run_differs_from_the_others_of_its_seed_and_data_in_the_arm_alone(tmp_path):
    one = comparison()
    runs = one.runs()
    assert len(runs) == len({run.name for run in runs}) == 4 * 2 * 2
    flags = {run.name: set(one.run_flags(run, tmp_path / run.name)) for run in runs}
    for run in runs:
        plain = flags[Run(one.arms[0], run.seed, run.fraction).name]
        more = {f for f in flags[run.name] - plain if not f.startswith(("--output_dir", "--policy."))}
        assert not more
    half = Run(one.arms[0], 1, 0.5)
    assert "--dataset.episodes=[0,3]" in flags[half.name]
    assert {"--seed=1", "--save_freq=250", "--env_eval_freq=0"} <= flags[half.name]
    assert one.evaluated_steps == [250, 500, 750, 1000]
    blind = Run(Arm("blind", role="reference"), 0, 1.0)
    assert [one.steps_of(run) for run in (one.runs()[0], blind)] == [one.evaluated_steps, [1000]]


@given(st.integers(1, 300), st.integers(1, 20))
def test_there_are_no_more_evaluations_than_asked_for_and_the_last_is_of_the_end(steps, wanted):
    if wanted > steps:
        return
    found = comparison(steps=steps, measures=Measures(wanted)).evaluated_steps
    assert len(found) <= wanted
    assert found[-1] == steps
    assert max(b - a for a, b in pairwise([0, *found])) == found[0], "evenly, but for the last"


def test_evaluations_are_read_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "eval").mkdir()
    for step in (1_000_000, 250_000):
        Evaluation(step=step, episodes=[]).save(evaluation_path(tmp_path, step))
    assert [one.step for one in evaluations_of(tmp_path)] == [250_000, 1_000_000]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"seeds": ()}, "--seeds names at least one"),
        ({"seeds": (1, 1)}, "none twice; got 1, 1"),
        ({"seeds": (-1,)}, "whole numbers from 0"),
        ({"fractions": (0.0,)}, "above 0 and up to 1"),
        ({"measures": Measures(evaluations=2000)}, "2000 evaluations do not fit into 1000 steps"),
    ],
)
def test_comparisons_that_cannot_be(options, says):
    with pytest.raises(CompareError, match=says):
        comparison(**options)


def test_arms_that_differ_in_what_they_share_are_refused():
    arms = {
        "plain": Arm("plain"),
        "forced": Arm("forced", forcing={}),
        "blind": Arm("blind", role="reference"),
    }
    config = {"steps": 5, "policy.chunk_size": 8}
    check_shared(arms, {"plain": config, "forced": config, "blind": config | {"policy.chunk_size": 4}})
    with pytest.raises(CompareError, match=r"'plain' and 'forced' differ in policy.chunk_size: 8 against 4"):
        check_shared(arms, {"plain": config, "forced": config | {"policy.chunk_size": 4}, "blind": config})
    with pytest.raises(CompareError, match=r"'plain' and 'blind' differ in steps"):
        check_shared(arms, {"blind": config | {"steps": 6}, "plain": config, "forced": config})


def test_a_disk_without_room_for_the_checkpoints_is_an_error_before_anything_trains(tmp_path, monkeypatch):
    from spatial_forcing.compare import command, preflight

    policy = torch.nn.Sequential(torch.nn.Linear(10, 10), torch.nn.Linear(10, 10))
    policy[0].requires_grad_(False)
    assert preflight.checkpoint_bytes(policy) == 4 * 110 + 3 * 4 * 110
    policy.peft_config = {}  # LeRobot saves the adapter alone
    assert preflight.checkpoint_bytes(policy) == 3 * 4 * 110
    looked = preflight.Looked({"plain": []}, {"plain": 2**30}, None)
    monkeypatch.setattr(preflight, "check_arms", lambda *args, **options: looked)
    monkeypatch.setattr(preflight, "small_version", lambda comparison, **sizes: comparison)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 * 2**30}))
    one = Comparison((), (Arm("plain"),), (0, 1), (1.0,), Split((0,), (1,)), steps=8, measures=Measures(4))
    with pytest.raises(CompareError, match=r"needs about 8.0 GiB; 5.0 GiB are free. The checkpoints of all"):
        command.look_first(
            one, tmp_path / "out", Launch(), None, "cpu", Console(quiet=True), {}, anyway=False
        )
    assert not (tmp_path / "out").exists()


def test_a_comparison_that_could_not_be_reported_does_not_begin(tmp_path, monkeypatch):
    from spatial_forcing.compare import command

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingDependencyError, match=r"This needs matplotlib.*\[report\]"):
        command.make(comparison(), tmp_path / "out", Launch(), Console(quiet=True))
    assert not (tmp_path / "out").exists()


def test_what_the_guards_call_wrong_ends_a_comparison_unless_it_goes_on_anyway(tmp_path, monkeypatch, capsys):
    from spatial_forcing.compare import command, preflight

    said = {
        "kind": "wrong",
        "policy": "plain",
        "about": "cameras",
        "expected": "a",
        "found": "b",
        "advice": "c.",
    }
    guarded = Guarded.from_plain({"policy": "plain", "agreed": [], "missing": "", "findings": [said]}, "here")
    assert Guarded.from_plain(guarded.plain(), "here") == guarded
    looked = preflight.Looked({"plain": []}, {"plain": 1}, guarded)
    monkeypatch.setattr(preflight, "check_arms", lambda *args, **options: looked)
    monkeypatch.setattr(preflight, "small_version", lambda comparison, **sizes: comparison)
    one = Comparison((), (Arm("plain"),), (0,), (1.0,), Split((0,), (1,)), steps=8, measures=Measures(4))
    arguments = one, tmp_path / "out", Launch(), None, "cpu", Console(), {}
    with pytest.raises(
        EvalError, match=r"(?s)--anyway. Nothing was trained.*plain, cameras: expected a; found b"
    ):
        command.look_first(*arguments, anyway=False)
    warned = "wrong: plain, cameras: expected a; found b. c."
    assert command.look_first(*arguments, anyway=True) == [warned]
    assert warned in capsys.readouterr().out


def test_a_warning_of_several_arms_is_told_once(tmp_path):
    looked = Looked({"plain": [], "forced": ["x", "y"], "place": ["x"]}, {}, None)
    assert looked.warnings == ["forced, place: x", "forced: y"]
    assert warnings_of(tmp_path) == []
    write_json(tmp_path / "warnings.json", {"warnings": looked.warnings})
    assert warnings_of(tmp_path) == looked.warnings
    (tmp_path / "warnings.json").write_text("{")
    with pytest.raises(SpatialForcingError, match=r"warnings\.json.*Remove it"):
        warnings_of(tmp_path)


def test_the_work_that_is_done_is_read_from_the_ends_of_the_logs(tmp_path):
    arms = (Arm("plain"), Arm("blind", role="reference"))
    one = Comparison((), arms, (0,), (1.0,), Split((0,), (1,)), steps=400, measures=Measures(2))
    assert work_done(one, tmp_path) == {"plain": (0, 500), "blind": (0, 450)}
    run = folder_of(tmp_path, one.runs()[0])
    (run / "train").mkdir(parents=True)
    (run / "eval").mkdir()
    rows = [json.dumps({"step": step, "filler": "x" * 500}) for step in range(10, 310, 10)]
    (run / "train" / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 31')
    (run / "eval" / "000200.json").write_text("{}")
    assert work_done(one, tmp_path) == {"plain": (300 + 50, 500), "blind": (0, 450)}


def run_that(step: int, steps: int = 10, evaluations: int = 0, to_evaluate: int = 1, **rest) -> Progress:
    """Progress of a run that goes on, with the rest as said."""
    evaluated = [Evaluation(step=steps, episodes=[], seconds=4.0, heldout_seconds=1.0)] * evaluations
    state = {
        "begun": True,
        "goes_on": True,
        "failed": False,
        "seconds_per_step": None,
        "startup_seconds": None,
    }
    return Progress(
        **{"name": "a", **state, **rest},
        step=step,
        steps=steps,
        evaluations=evaluated,
        to_evaluate=to_evaluate,
    )


def test_time_left_counts_start_up_and_evaluation_as_finished_runs_took_them():
    done = run_that(10, evaluations=1, seconds_per_step=0.5, startup_seconds=20.0, goes_on=False)
    waiting = run_that(0, begun=False, goes_on=False)
    half = run_that(5, seconds_per_step=0.5)
    assert seconds_left([done, waiting], 1) == 10 * 0.5 + 5 + 20
    assert seconds_left([done, half], 1) == 5 * 0.5 + 5
    assert seconds_left([done, waiting], 2) == 15
    assert seconds_left([waiting], 1) is None


def test_watching_ends_when_nothing_more_will_happen():
    finished, waiting = run_that(10, evaluations=1, goes_on=False), run_that(0, begun=False, goes_on=False)
    going, failed, stopped = run_that(5), run_that(5, goes_on=False, failed=True), run_that(5, goes_on=False)
    assert is_over([finished, finished])
    assert not is_over([finished, going])
    assert not is_over([failed, going]), "the others are being ended"
    assert is_over([failed, stopped, waiting])
    assert not is_over([stopped, waiting]), "it may be started again"
    states = [one.state for one in (finished, waiting, going, failed, stopped)]
    assert states == ["finished", "waiting", "step 5 of 10", "failed", "stopped at step 5"]


def test_the_table_of_runs_fits_a_narrow_terminal():
    one = run_that(450, 20000, to_evaluate=2, seconds_per_step=0.255, name="shuffled-points-f100-s11")
    printed = StringIO()
    Console(width=80, file=printed).print(status_table([one], 2))
    (row,) = [line for line in printed.getvalue().splitlines() if "shuffled" in line]
    assert row.split() == ["shuffled-points-f100-s11", "step", "450", "of", "20000", "0.255", "0", "of", "2"]


def test_of_a_comparison_that_was_stopped_no_time_is_left():
    def title(*runs: Progress) -> str:
        return str(status_table(runs, 1).title)

    going = run_that(5, seconds_per_step=1.0)
    assert title(going, run_that(0, begun=False, goes_on=False)).startswith("0 of 2 runs finished, about")
    assert "none goes on now" in title(replace(going, goes_on=False), run_that(0, begun=False, goes_on=False))


def test_another_probe_is_no_other_comparison_until_it_was_made(tmp_path):
    out = tmp_path / "out"
    first = comparison()
    take_folder(out, first)
    other = replace(first, measures=replace(first.measures, probe="pseudo:vggt-tiny-sim"))
    take_folder(out, other)
    assert comparison_in(out).measures.probe == "pseudo:vggt-tiny-sim"
    with pytest.raises(CompareError, match=r"flags: \[.*\] there, \[.*\] wanted"):
        take_folder(out, replace(other, flags=(*first.flags, "--steps=7")))
    (out / "probe").mkdir()
    (out / "probe" / "probe.json").write_text("{}")
    with pytest.raises(CompareError, match=r"measures.probe: 'pseudo:vggt-tiny-sim' there, 'auto' wanted"):
        take_folder(out, first)


def test_depth_models_without_depth_are_refused_before_anything_trains():
    from spatial_forcing.compare.probing import depth_wanted
    from spatial_forcing.probe.depth import ProbeError

    one = comparison()
    for probe, error, says in (
        ("pseudo:dinov2-small", ProbeError, "dinov2-small has no depth head"),
        ("pseudo:vgtt-1b", UnknownNameError, "vggt-1b"),
    ):
        with pytest.raises(error, match=says):
            depth_wanted(replace(one, measures=replace(one.measures, probe=probe)))
    assert (
        depth_wanted(replace(one, measures=replace(one.measures, probe="pseudo:vggt-1b"))) == "pseudo:vggt-1b"
    )
