"""What a comparison is made of: arms, their training commands, splits of episodes; before anything runs."""

import json
from dataclasses import asdict, fields, replace
from io import StringIO
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from lerobot_policy_spatial_forcing.forcing_config import AlignmentConfig, ForcingConfig
from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.compare.arm import Arm, arms_of
from spatial_forcing.compare.flags import (
    OF_ALL,
    CompareError,
    arm_flags,
    check_flags,
    joined,
    policy_of,
    side_by_side,
)
from spatial_forcing.compare.options import job_options
from spatial_forcing.compare.plan import Comparison, Measures, Run, comparison_in, folder_of, take_folder
from spatial_forcing.compare.preflight import check_shared
from spatial_forcing.compare.split import Split, split_episodes
from spatial_forcing.compare.status import Progress, seconds_left, status_table, work_done
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.results import Evaluation

FLAGS = [
    "--policy.type=smolvla",
    "--dataset.repo_id=me/cups",
    "--steps=1000",
    "--policy.forcing.loss_weight=2",
]


def names(arms: list[Arm]) -> list[str]:
    return [arm.name for arm in arms]


# ---- arms --------------------------------------------------------------------------------------------------


def test_the_controls_are_in_every_comparison_unless_they_are_left_out():
    assert names(arms_of(["plain", "forced"], None, "vggt-1b")) == ["plain", "forced", "shuffled", "place"]
    assert names(arms_of(["forced", "place"], None, "vggt-1b")) == ["forced", "place", "shuffled"]
    assert names(arms_of(["plain", "forced"], None, "vggt-1b", controls=False)) == ["plain", "forced"]
    roles = {arm.name: arm.role for arm in arms_of(["plain", "forced"], None, "vggt-1b")}
    assert roles == {"plain": "arm", "forced": "arm", "shuffled": "control", "place": "control"}


def test_a_control_of_another_arm_does_not_take_the_place_of_the_first_ones():
    """One toward other targets, or at another weight, as docs/compare.md has them in an arms file."""
    others = [
        {"name": "points", "forcing": {"points": "alone"}},
        {"name": "shuffled-points", "role": "control", "forcing": {"points": "alone", "control": "shuffled"}},
        {"name": "place05", "role": "control", "forcing": {"loss_weight": 0.5, "control": "place"}},
    ]
    found = arms_of(["plain", "forced"], json.dumps(others), "vggt-1b")
    assert names(found) == [
        *("plain", "forced", "points", "shuffled-points", "place05"),
        *("shuffled", "place"),
    ]
    assert found[-2].forcing == {"teacher": "vggt-1b", "control": "shuffled"}
    same = [{"name": "mixed", "role": "control", "forcing": {"control": "shuffled"}}]
    assert names(arms_of(["plain", "forced"], json.dumps(same), "vggt-1b")) == [
        "plain",
        "forced",
        "mixed",
        "place",
    ]


def test_arms_of_a_file_follow_the_presets(tmp_path):
    file = tmp_path / "arms.yaml"
    file.write_text(
        "- name: strong\n  forcing: {teacher: vggt-1b, loss_weight: 4.0}\n"
        "- name: blind\n  role: reference\n  policy: {use_images: false}\n"
    )
    arms = arms_of(["plain"], str(file), "vggt-1b")
    assert names(arms) == ["plain", "strong", "blind", "shuffled", "place"]
    assert arms[1].differs == ["--policy.forcing.teacher=vggt-1b", "--policy.forcing.loss_weight=4.0"]
    assert arms[2].differs == ["--policy.use_images=false"]


def test_controls_have_the_options_of_the_arm_under_test(tmp_path):
    """Of the first forced one, or of the one that is named."""
    file = tmp_path / "arms.yaml"
    file.write_text(
        "- name: early\n  forcing: {teacher: dinov2-base, site: vision.-1}\n"
        "- name: strong\n  forcing: {teacher: vggt-1b, loss_weight: 4.0}\n"
        "- name: two\n  forcing: {alignments: [{site: blocks.1}, {site: blocks.2, teacher: dinov2-base}]}\n"
    )

    def controls(*presets: str, **more) -> list:
        arms = arms_of(presets, str(file), "vggt-1b", **more)
        return [arm.forcing for arm in arms if arm.role == "control"]

    early = {"teacher": "dinov2-base", "site": "vision.-1"}
    assert controls("plain") == [early | {"control": "shuffled"}, early | {"control": "place"}]
    assert controls("plain", "forced")[0] == {"teacher": "vggt-1b", "control": "shuffled"}
    strong = {"teacher": "vggt-1b", "loss_weight": 4.0}
    assert controls("plain", "forced", controls_of="strong")[1] == strong | {"control": "place"}
    assert controls("plain", controls_of="two")[0] == {
        "alignments": [
            {"teacher": "vggt-1b", "site": "blocks.1", "control": "shuffled"},
            {"teacher": "dinov2-base", "site": "blocks.2", "control": "shuffled"},
        ]
    }
    with pytest.raises(UnknownNameError, match=r"forced arm 'plain'.*early"):
        controls("plain", controls_of="plain")


def test_an_arm_that_names_no_teacher_has_that_of_the_command(tmp_path):
    """An arm that lists alignments has it in each of them, and holds what was in their file."""
    file, two = tmp_path / "arms.yaml", tmp_path / "two.yaml"
    two.write_text("- {site: blocks.1}\n- {site: blocks.2, teacher: dinov2-base}\n")
    file.write_text(
        "- name: early\n  forcing: {site: vision.-1}\n"
        "- name: other\n  forcing: {teacher: dinov2-base}\n"
        f"- name: two\n  forcing: {{alignments: {two}}}\n"
    )
    arms = {arm.name: arm.forcing for arm in arms_of(["plain"], str(file), "pixels", controls=False)}
    assert arms["early"] == {"teacher": "pixels", "site": "vision.-1"}
    assert arms["other"] == {"teacher": "dinov2-base"}
    assert arms["two"] == {
        "alignments": [
            {"teacher": "pixels", "site": "blocks.1"},
            {"teacher": "dinov2-base", "site": "blocks.2"},
        ]
    }
    assert arms["plain"] is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("- name: a\n  steps: 5\n", r"line 2: .*key of an arm 'steps'.*forcing"),
        ("- name: a\n  role: judge\n", r"line 2: .*role 'judge'"),
        ("- name: a b\n", r"line 1: An arm's name has letters"),
        ("- name: a\n  forcing: {alignments: none.yaml}\n", r"arm 'a' is a YAML or JSON file.*none.yaml"),
        ("- name: a\n  forcing: {alignments: [{cache: here}]}\n", r"stored by the comparison itself"),
        ("- name: a\n  policy: {chunk_size: 4}\n", r"line 1: .*'a' has options of the policy \(chunk_size\)"),
        ("- name: a\n  forcing: {cache: x}\n", r"line 2: Features are stored by the comparison itself"),
        ("- name: a\n  forcing: yes please\n", r"line 2: forcing is a mapping of options"),
        ("- name: a\n- name: a\n", r"line 2: the name a is taken"),
        ("- name: plain\n", r"Two arms are called 'plain'"),
        ("", "is empty"),
    ],
)
def test_arms_that_cannot_be(tmp_path, text, says):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(SpatialForcingError, match=says):
        arms_of(["plain"], str(tmp_path / "arms.yaml"), "vggt-1b")


@pytest.mark.parametrize(
    ("presets", "says"),
    [
        (["plain", "forcd"], r"Unknown arm 'forcd'. Did you mean 'forced'"),
        (["plain"], "at least two arms; got plain"),
        (["plain", "plain"], "Two arms are called 'plain'"),
        (["plain", "untrained"], "No untrained version of the teacher 'vggt-1b'"),
    ],
)
def test_presets_that_cannot_be(presets, says):
    with pytest.raises((SpatialForcingError, UnknownNameError), match=says):
        arms_of(presets, None, "vggt-1b")


# ---- commands ----------------------------------------------------------------------------------------------


def test_the_command_of_an_arm_has_its_type_and_its_options():
    plain, forced, shuffled, _ = arms_of(["plain", "forced"], None, "vggt-1b")
    assert arm_flags(FLAGS, plain) == FLAGS[:3]
    assert arm_flags(FLAGS, forced) == [
        "--policy.type=sf_smolvla",
        *FLAGS[1:],
        "--policy.forcing.teacher=vggt-1b",
    ]
    assert "--policy.forcing.control=shuffled" in arm_flags(FLAGS, shuffled)
    strong = Arm("strong", forcing={"loss_weight": 4.0})
    assert [flag for flag in arm_flags(FLAGS, strong) if "loss_weight" in flag] == [
        "--policy.forcing.loss_weight=4.0"
    ]


def test_alignments_of_an_arm_have_the_options_of_the_command_unless_they_say_others():
    """Each reads its own stored features; what is said once for all alignments stays beside them."""
    entries = [
        {"name": "first", "site": "blocks.1", "loss_weight": 2.0},
        {"site": "blocks.2", "shares": "first"},
    ]
    arm = Arm("two", forcing={"alignments": entries})
    command = ["--policy.type=tiny", "--policy.forcing.loss_weight=0.5", "--policy.forcing.standardize=true"]
    flags = arm_flags([*command, "--policy.forcing.diagnostics_every=7"], arm, [Path("a"), Path("b")])
    assert flags[:2] == ["--policy.type=sf_tiny", "--policy.forcing.diagnostics_every=7"]
    forcing = policy_of([*flags, "--dataset.repo_id=local/demos"]).forcing
    first, second = forcing.entries()
    assert forcing.diagnostics_every == 7
    assert (first.loss_weight, second.loss_weight) == (2.0, 0.5)
    assert (first.standardize, second.standardize, second.shares) == (True, True, "first")
    assert (first.cache, second.cache) == ("a", "b")


def test_what_is_said_once_is_all_that_alignments_do_not_say():
    """A new option of ``--policy.forcing`` is of one alignment, or belongs into OF_ALL."""
    once = {f.name for f in fields(ForcingConfig)} - {f.name for f in fields(AlignmentConfig)}
    assert once - RENAMED_FORCING.keys() == {*OF_ALL, "alignments"}


def test_flags_in_two_words_are_one():
    assert joined(["--steps", "5", "--policy.path=x", "--flag"]) == ["--steps=5", "--policy.path=x", "--flag"]
    with pytest.raises(CompareError, match="'stray' is none"):
        joined(["stray", "--steps=5"])


@pytest.mark.parametrize(
    "flag", ["seed=1", "output_dir=x", "resume=true", "policy.forcing.cache=x", "eval.n_episodes=5"]
)
def test_flags_that_a_comparison_decides_are_refused(flag):
    with pytest.raises(CompareError, match=rf"--{flag.partition('=')[0]} is not for the command"):
        check_flags([f"--{flag}"])


@pytest.mark.parametrize(
    ("flags", "kind", "side"),
    [
        ([], "libero", 1),
        ([], "sf_metaworld", 20),
        (["--eval.batch_size=5"], "libero", 5),
        (["--eval.batch_size=5", "--eval.batch_size=3"], "sf_metaworld", 3),
        (["--eval.batch_size=50"], "libero", 20),
        (["--eval.batch_size=0"], "libero", 1),  # LeRobot's word for its own choice
    ],
)
def test_rollouts_side_by_side_are_as_many_as_the_command_says(flags, kind, side):
    assert side_by_side(flags, SimpleNamespace(type=kind), 20) == side


def test_options_of_jobs():
    assert job_options(["timeout_min=60", "slurm_partition=gpu"]) == (
        ("timeout_min", 60),
        ("slurm_partition", "gpu"),
    )
    with pytest.raises(CompareError, match="name=value"):
        job_options(["gpu"])


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


def comparison(**options) -> Comparison:
    given = {
        "flags": tuple(FLAGS),
        "arms": tuple(arms_of(["plain", "forced"], None, "vggt-1b")),
        "seeds": (0, 1),
        "fractions": (0.5, 1.0),
        "split": Split((3, 0, 2, 4), (1,)),
        "steps": 1000,
    }
    return Comparison(**given | options)


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


def test_a_folder_is_of_one_comparison(tmp_path):
    out = tmp_path / "out"
    take_folder(out, comparison())
    take_folder(out, comparison())
    assert comparison_in(out) == comparison()
    with pytest.raises(CompareError, match=r"another comparison.*seeds"):
        take_folder(out, comparison(seeds=(5,)))
    assert asdict(comparison_in(out)) == asdict(comparison())
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("")
    with pytest.raises(CompareError, match="not empty"):
        take_folder(tmp_path / "thesis", comparison())
    with pytest.raises(CompareError, match="holds no comparison"):
        comparison_in(tmp_path)


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
    looked = preflight.Looked({"plain": []}, {"plain": 2**30})
    monkeypatch.setattr(preflight, "check_arms", lambda *args, episodes: looked)
    monkeypatch.setattr(preflight, "small_version", lambda comparison, **sizes: comparison)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 * 2**30}))
    one = Comparison((), (Arm("plain"),), (0, 1), (1.0,), Split((0,), (1,)), steps=8, measures=Measures(4))
    with pytest.raises(CompareError, match=r"needs about 8.0 GiB; 5.0 GiB are free. The checkpoints of all"):
        command.look_first(one, tmp_path / "out", None, "cpu", Console(quiet=True), {})
    assert not (tmp_path / "out").exists()


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


def test_time_left_counts_start_up_and_evaluation_as_finished_runs_took_them():
    evaluated = Evaluation(step=10, episodes=[], seconds=4.0, heldout_seconds=1.0)
    done = Progress("a", 10, 10, [evaluated], 1, seconds_per_step=0.5, startup_seconds=20.0, failed=False)
    waiting = Progress("b", 0, 10, [], 1, seconds_per_step=None, startup_seconds=None, failed=False)
    half = Progress("c", 5, 10, [], 1, seconds_per_step=0.5, startup_seconds=None, failed=False)
    assert seconds_left([done, waiting], 1) == 10 * 0.5 + 5 + 20
    assert seconds_left([done, half], 1) == 5 * 0.5 + 5
    assert seconds_left([done, waiting], 2) == 15
    assert seconds_left([waiting], 1) is None


def test_the_table_of_runs_fits_a_narrow_terminal():
    one = Progress("shuffled-points-f100-s11", 450, 20000, [], 2, 0.255, startup_seconds=None, failed=False)
    printed = StringIO()
    Console(width=80, file=printed).print(status_table([one], 2))
    (row,) = [line for line in printed.getvalue().splitlines() if "shuffled" in line]
    assert row.split() == ["shuffled-points-f100-s11", "step", "450", "of", "20000", "0.255", "0", "of", "2"]


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
    from spatial_forcing.errors import UnknownNameError
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
