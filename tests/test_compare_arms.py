"""The arms of a comparison and their training commands."""

import json
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from lerobot_policy_spatial_forcing.forcing_config import AlignmentConfig, ForcingConfig
from spatial_forcing.command_names import RENAMED_FORCING
from spatial_forcing.compare.arm import Arm, arms_of
from spatial_forcing.compare.features import Teaching, teachings_of
from spatial_forcing.compare.flags import (
    OF_ALL,
    CompareError,
    arm_flags,
    check_flags,
    joined,
    policy_of,
    side_by_side,
)
from spatial_forcing.compare.gather import label_of
from spatial_forcing.compare.options import job_options
from spatial_forcing.compare.plan import Comparison
from spatial_forcing.compare.split import Split
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.results import ArmHead, Results

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
    with pytest.raises(SpatialForcingError, match=r"--controls-of strong asks for a control 'shuffled'"):
        controls("plain", "forced", "shuffled", controls_of="strong")


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
    file.write_text(f"- name: two\n  forcing: {{teacher: vggt-1b, alignments: {two}}}\n")
    (_, arm) = arms_of(["plain"], str(file), "pixels", controls=False)
    assert [entry["teacher"] for entry in arm.forcing["alignments"]] == ["vggt-1b", "dinov2-base"]


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


def test_a_control_of_one_arm_is_held_against_that_arm_alone():
    others = [
        {"name": "points", "forcing": {"points": "alone"}},
        {"name": "mixed", "role": "control", "of": "points", "forcing": {"control": "shuffled"}},
    ]
    arms = arms_of(["plain", "forced", "place"], json.dumps(others), "vggt-1b", controls=False)
    heads = {arm.name: ArmHead(label=arm.name, role=arm.role, of=arm.of) for arm in arms}
    said = {"title": "t", "created": "now", "command": "c", "versions": {}, "hardware": {}, "settings": {}}
    results = Results(**said, timings={}, tasks=[], arms=heads, runs=[])
    assert set(results.pairs()) == {
        *((plain_or_place, arm) for plain_or_place in ("plain", "place") for arm in ("forced", "points")),
        ("mixed", "points"),
    }
    for of, role, says in (
        ("pionts", "control", "Did you mean 'points'"),
        ("points", "arm", "only a control"),
    ):
        with pytest.raises(SpatialForcingError, match=says):
            arms_of(["plain"], json.dumps([others[0], others[1] | {"of": of, "role": role}]), "vggt-1b")


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


def test_an_arm_may_start_from_a_checkpoint_of_its_own():
    arms = [
        Arm("plain"),
        Arm("on", start="runs/a"),
        Arm("forced", forcing={"teacher": "vggt-1b"}, start="runs/b"),
    ]
    found = [arm_flags([*FLAGS, "--policy.path=runs/c"][1:], arm) for arm in arms]
    starts = [[flag for flag in flags if flag.startswith("--policy.path")] for flags in found]
    assert starts == [["--policy.path=runs/c"], ["--policy.path=runs/a"], ["--policy.path=runs/b"]]
    typed = arm_flags(FLAGS, arms[1])
    assert typed == [*FLAGS[1:3], "--policy.path=runs/a"], "a checkpoint knows its type"


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


def test_every_alignment_of_an_arm_has_features_of_its_teacher_and_layer():
    entries = [{"teacher": "vggt-1b", "site": "blocks.1"}, {"teacher": "dinov2-base", "layer": 3}]
    arms = (Arm("plain"), Arm("two", forcing={"alignments": entries}))
    flags = ("--policy.type=tiny", "--dataset.repo_id=local/demos")
    one = Comparison(flags, arms, (0,), (1.0,), Split((0,), (1,)), steps=8)
    assert teachings_of(one, arms[0]) == []
    assert teachings_of(one, arms[1]) == [Teaching("vggt-1b"), Teaching("dinov2-base", layer=3)]
    assert teachings_of(replace(one, stored=False), arms[1]) == []


def test_the_label_of_an_arm_says_whose_depth_its_points_are_from():
    """Recorded depth is privileged, and stands where the numbers stand."""
    forcing = {"teacher": "vggt-tiny-sim", "points": "alone"}
    arms = (
        Arm("plain", "without forcing"),
        Arm("near", "points alone", forcing=forcing | {"points_from": "recorded"}),
        Arm("far", forcing=forcing | {"points_from": "pseudo:vggt-1b"}),
    )
    flags = ("--policy.type=tiny", "--dataset.repo_id=local/demos")
    one = Comparison(flags, arms, (0,), (1.0,), Split((0,), (1,)), steps=8)
    assert [label_of(one, arm) for arm in arms] == [
        "without forcing",
        "points alone; recorded depth (privileged)",
        "far; pseudo:vggt-1b",
    ]


def test_what_is_said_once_is_all_that_alignments_do_not_say():
    """A new option of ``--policy.forcing`` is of one alignment, or belongs into OF_ALL."""
    once = {f.name for f in fields(ForcingConfig)} - {f.name for f in fields(AlignmentConfig)}
    assert once - RENAMED_FORCING.keys() == {*OF_ALL, "alignments"}


def test_flags_in_two_words_are_one():
    assert joined(["--steps", "5", "--policy.path=x", "--flag"]) == ["--steps=5", "--policy.path=x", "--flag"]
    with pytest.raises(CompareError, match="'stray' is none"):
        joined(["stray", "--steps=5"])


@pytest.mark.parametrize(
    "flag",
    [
        "seed=1",
        "output_dir=x",
        "resume=true",
        "policy.forcing.cache=x",
        "policy.forcing.teacher=x",
        "dataset.revision=v2",
        "eval.n_episodes=5",
        "eval.use_async_envs=true",
    ],
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
