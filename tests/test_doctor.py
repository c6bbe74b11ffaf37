"""The doctor on every host record, through LeRobot's trainer: what trains passes, what is wrong is said."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_dataset import make_dataset
from small_policies import CAMERAS, PICTURE, SMALL, small_config, small_parts

from spatial_forcing import SpatialForcingError, load_teacher
from spatial_forcing.cache.extract import extract
from spatial_forcing.cli import main
from spatial_forcing.doctor import Findings, diagnose, examine_training
from spatial_forcing.flags import read_config
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.hosts.smolvla import small_smolvlm
from spatial_forcing.rehearsal import FirstStep, first_step, training_flags
from spatial_forcing.train import checkpoints, train_config, train_or_continue

LEFT, RIGHT = CAMERAS
MIXED = {LEFT: SMALL, RIGHT: (64, 40)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """size of the images -> folder of a data set, written when first asked for."""
    root, made = tmp_path_factory.mktemp("data"), {}

    def data_of(size: Any) -> Path:
        key = str(size)
        if key not in made:
            made[key] = make_dataset(root / str(len(made)), episodes=2, frames=4, size=size)
        return made[key]

    return data_of


@pytest.fixture(autouse=True)
def untracked() -> Iterator[None]:
    """The doctor makes GR00T's preprocessor say what it cropped, in its process: not in the other tests'."""
    groot = sys.modules.get("lerobot.policies.groot.processor_groot")
    steps = [groot.GrootN17PackInputsStep, groot.GrootN17VLMEncodeStep] if groot else []
    plain = [step.__call__ for step in steps]
    yield
    for step, call in zip(steps, plain, strict=True):
        step.__call__ = call


def run_config(config: Any, dataset: Path) -> Any:
    return train_config(config, dataset, Path("nowhere"), steps=2, batch_size=4, seed=3, save_every=2)


def rehearsed(config: Any, dataset: Path) -> FirstStep:
    with small_parts(config.type.removeprefix("sf_")):
        return first_step(run_config(config, dataset))


def visit(kind: str, folder: Path, dataset: Path, **options: Any) -> Findings:
    forcing = options.pop("forcing", {})
    step = rehearsed(small_config(kind, folder, forcing=forcing, **options), dataset)
    with small_parts(kind):
        return diagnose(step)


def assert_healthy(found: Findings) -> None:
    assert not found.wrong
    assert found.facts["perturbation check"].endswith("move most the token that the record names.")
    assert {"host", "teacher", "valid tokens", "cosine at start", "gradient ratio at tap", "step"} <= set(
        found.facts
    )
    assert "visual tokens" in found.drawing


# ---- every record ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(PICTURE))
def test_images_that_are_padded_cropped_or_normalised(folder, data, kind):
    """No image is square; ACT's are normalised by the data set, X-VLA's with ImageNet's mean."""
    if kind == "groot":
        small_config("groot", folder)  # skips where it cannot be built
        import lerobot.policies.groot.processor_groot  # noqa: F401
    assert_healthy(visit(kind, folder, data(PICTURE[kind])))


@pytest.mark.parametrize("mode", ["MEAN_STD", "MIN_MAX"])
def test_images_that_are_normalised_and_padded(folder, data, mode):
    from lerobot.configs.types import NormalizationMode

    mapping = dict.fromkeys(("STATE", "ACTION"), NormalizationMode.IDENTITY)
    mapping["VISUAL"] = NormalizationMode[mode]
    assert_healthy(visit("smolvla", folder, data(SMALL), normalization_mapping=mapping))


MANY_SIZES = [
    ("smolvla", {}),
    ("pi0", {}),
    ("xvla", {"resize_imgs_with_padding": (96, 96)}),
    ("evo1", {}),
]


@pytest.mark.parametrize(("kind", "options"), MANY_SIZES)
def test_cameras_of_different_sizes(folder, data, kind, options):
    found = visit(kind, folder, data(MIXED), **options)
    assert_healthy(found)
    assert "40 x 60, 64 x 40" in found.facts["images"]


@pytest.mark.parametrize(
    ("kind", "says"), [("act", "different sizes"), ("eo1", "different grids of patches")]
)
def test_cameras_of_different_sizes_where_they_cannot_be(folder, data, kind, says):
    try:
        wrong = visit(kind, folder, data(MIXED)).wrong
    except SpatialForcingError as error:
        wrong = [str(error)]
    assert len(wrong) == 1
    assert says in wrong[0]


def test_stored_features_of_a_host_that_pads(folder, data, tmp_path):
    cache = extract(data(SMALL), load_teacher("untrained-tiny"), "untrained-tiny", tmp_path / "features")
    found = visit("smolvla", folder, data(SMALL), forcing={"cache": str(cache), "teacher": None})
    assert_healthy(found)
    assert "reading stored features" in found.facts["step"]


def test_some_of_the_cameras_are_aligned(folder, data):
    found = visit("smolvla", folder, data(MIXED), forcing={"cameras": [RIGHT]})
    assert_healthy(found)
    assert found.facts["images"].startswith("64 x 40 pixels")
    assert any("tokens for 2 views, 1 are aligned" in message for message in found.odd)


# ---- what is wrong -----------------------------------------------------------------------------------------


def late(visual: Any) -> Any:
    return lambda hidden_BLD: visual(hidden_BLD.roll(-1, 1))


def by_columns(visual: Any) -> Any:
    return lambda hidden_BLD: visual(hidden_BLD).unflatten(1, (2, 4, 4)).transpose(2, 3).flatten(1, 3)


@pytest.mark.parametrize(("defect", "says"), [(late, "starts 1 token too late"), (by_columns, "transposed")])
def test_a_record_with_a_mistake_is_found(folder, data, request, defect, says):
    record = RECORDS["smolvla"]

    def mistaken(policy: Any, views: int) -> Any:
        host = record.host(policy, views)
        return replace(host, visual=defect(host.visual))

    request.addfinalizer(lambda: RECORDS.add(record.type, record))
    RECORDS.add(record.type, replace(record, host=mistaken))
    (wrong,) = visit("smolvla", folder, data(SMALL)).wrong
    assert says in wrong


def test_a_frozen_host_is_wrong_and_its_places_are_looked_at_all_the_same(folder, data):
    found = visit("smolvla", folder, data(SMALL), train_expert_only=True)
    assert len(found.wrong) == 1
    assert "--policy.train_expert_only=false" in found.wrong[0]
    assert "perturbation check" in found.facts


def test_warnings_of_the_policy_are_findings(folder, data):
    found = visit("evo1", folder, data(SMALL))
    assert any("full fine-tuning" in message for message in found.odd)


def test_a_teacher_that_knows_nothing_and_a_weight_that_is_too_large(folder, data):
    found = visit("smolvla", folder, data(SMALL), forcing={"teacher": "pixels", "loss_weight": 1e4})
    assert any("times as hard as the action loss" in message for message in found.odd)


def test_the_policy_and_the_folder_stay_as_they_were(folder, data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    step = rehearsed(small_config("smolvla", folder, forcing={}), data(SMALL))
    before = {name: value.clone() for name, value in step.policy.state_dict().items()}
    diagnose(step)
    after = step.policy.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert all(p.grad is None for p in step.policy.parameters())
    assert not list(tmp_path.iterdir())


def test_the_batch_is_the_trainers_own(folder, data):
    """Stopped at its first update, the trainer has the batch and the weights that it would train."""
    from lerobot.scripts import lerobot_train

    step = rehearsed(small_config("smolvla", folder, forcing={}), data(SMALL))
    seen: list[Any] = []

    def update(tracker: Any, policy: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        seen.extend([policy.state_dict(), batch])
        raise KeyboardInterrupt

    run = run_config(small_config("smolvla", folder, forcing={}), data(SMALL))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lerobot_train, "update_policy", update)
        with pytest.raises(KeyboardInterrupt):
            lerobot_train.train(run)
    weights, batch = seen
    assert all(torch.equal(value, weights[name]) for name, value in step.policy.state_dict().items())
    assert batch.keys() == step.batch.keys()
    assert all(torch.equal(v, step.batch[k]) for k, v in batch.items() if isinstance(v, torch.Tensor))


def test_a_training_without_a_step(folder, data):
    run = run_config(small_config("act", folder, forcing={}), data(PICTURE["act"]))
    run.steps = 0
    with pytest.raises(SpatialForcingError, match="no step to make: steps is 0"):
        first_step(run)


def test_a_plain_policy_has_nothing_to_examine(folder, data):
    with pytest.raises(SpatialForcingError, match=r"trains SmolVLAPolicy, without.*sf_smolvla"):
        rehearsed(small_config("smolvla", folder), data(SMALL))


# ---- the command line --------------------------------------------------------------------------------------


def doctor(monkeypatch, capsys, *arguments: str) -> tuple[int, str]:
    """Exit code and everything that was printed."""
    monkeypatch.setattr(sys, "argv", ["spatial-forcing", "doctor", *arguments])
    monkeypatch.setenv("COLUMNS", "400")
    capsys.readouterr()
    try:
        main()
        code = 0
    except SystemExit as stopped:
        code = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    return code, out + err


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("demos") / "demos", episodes=2, frames=4, size=112)


def test_a_data_set_alone(monkeypatch, capsys, demos):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(demos), "--batch-size", "4")
    assert code == 0, text
    for fact in (
        "2 views x 8 rows x 8 columns = 128 visual tokens",
        "TinyVLA, 4 blocks",
        "after block 3 of 4",
        "8 x 8 tokens per view, width 224; Apache-2.0",
        "32 of 32 blanked cells",
        "s plain",
    ):
        assert fact in text, text


def smolvla_flags(folder: Path, dataset: Path) -> list[str]:
    return [
        f"--policy.vlm_model_name={small_smolvlm(folder / 'smolvlm')}",
        "--policy.num_vlm_layers=4",
        "--policy.resize_imgs_with_padding=[32,32]",
        "--policy.train_expert_only=false",
        "--policy.chunk_size=4",
        "--policy.n_action_steps=2",
        "--policy.device=cpu",
        "--dataset.repo_id=local/small",
        f"--dataset.root={dataset}",
        "--batch_size=2",
    ]


def test_lerobots_flags_and_the_plain_type(monkeypatch, capsys, folder, data):
    flags = ["--policy.type", "smolvla", *smolvla_flags(folder, data(SMALL)), "--teacher=untrained-tiny"]
    code, text = doctor(monkeypatch, capsys, *flags)
    assert code == 0, text
    assert "SmolVLA, 4 blocks" in text
    assert "blanked cells move most the token" in text


def test_a_checkpoint_and_lerobots_path(monkeypatch, capsys, folder, data, tmp_path):
    plain = small_config("smolvla", folder)
    run = train_config(plain, data(SMALL), tmp_path / "run", steps=1, batch_size=2, seed=3, save_every=1)
    with small_parts("smolvla"):
        saved = checkpoints(train_or_continue(run))[1]
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*"))
    with_dataset = ["--dataset", str(data(SMALL)), "--teacher", "untrained-tiny", "--batch_size", "2"]
    for flag in (f"--checkpoint={saved}", f"--policy.path={saved}"):
        code, text = doctor(monkeypatch, capsys, flag, *with_dataset)
        assert code == 0, text
        assert "SmolVLA, 4 blocks" in text
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.rglob("*")) == before
    code, text = doctor(monkeypatch, capsys, f"--checkpoint={saved.parents[1]}", *with_dataset)
    assert code == 2
    assert f"Did you mean {saved}" in text


def test_a_data_set_that_calls_its_cameras_otherwise(monkeypatch, capsys, folder, data, tmp_path):
    plain = small_config("smolvla", folder)
    run = train_config(plain, data(SMALL), tmp_path / "run", steps=1, batch_size=2, seed=3, save_every=1)
    with small_parts("smolvla"):
        saved = checkpoints(train_or_continue(run))[1]
    named = {"observation.images.front": RIGHT, "observation.images.side": LEFT}
    other = make_dataset(tmp_path / "other", episodes=1, frames=4, size=SMALL, cameras=tuple(named))
    flags = [f"--checkpoint={saved}", f"--dataset={other}", "--teacher=untrained-tiny", "--batch_size=2"]
    flags += [f"--rename_map={json.dumps(named)}", f"--policy.forcing.cameras={json.dumps(named)}"]
    code, text = doctor(monkeypatch, capsys, *flags)
    assert code == 0, text
    assert "blanked cells move most the token" in text


@pytest.mark.parametrize("size", [SMALL, MIXED])
def test_the_built_in_vla_stretches_images_of_any_size(monkeypatch, capsys, data, size):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(data(size)), "--teacher=untrained-tiny")
    assert code == 0, text
    assert "blanked cells move most the token" in text


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policy.chunk_size=many"], "chunk_size"),
        (["--policy.no_such_option=1"], "unrecognized arguments: --policy.no_such_option=1"),
        (["--datset=demos"], "unrecognized arguments: --datset=demos"),
        (["--policy.path=/no/where"], "/no/where"),
        (["--policy.chunk_size=0"], "n_action_steps must be 1 to chunk_size"),
        (["--policy.forcing.cache=nowhere"], "nowhere"),
    ],
)
def test_flags_that_training_would_not_take(monkeypatch, capsys, demos, flags, says):
    code, text = doctor(monkeypatch, capsys, "--dataset", str(demos), *flags)
    assert code == 2
    assert says in text


def test_flags_are_completed_and_nothing_else():
    with training_flags(["--policy.type=pi0"], dataset="owner/name", cache=Path("features")) as flags:
        assert flags == [
            "--policy.type=sf_pi0",
            "--policy.forcing.cache=features",
            "--batch_size=8",
            "--policy.push_to_hub=false",
            "--dataset.repo_id=owner/name",
        ]
    given = ["--policy.path=x", "--policy.forcing.teacher=vggt-1b", "--dataset.repo_id=a/b", "--batch_size=2"]
    with training_flags(given) as flags:
        assert flags == [*given, "--policy.push_to_hub=false"]


def test_frames_are_rendered_where_there_is_no_data_set(tmp_path, monkeypatch):
    made: list[Path] = []

    def rendered(root: Path, frames: int) -> Path:
        made.append(make_dataset(root, episodes=1, frames=frames, size=112))
        return root

    monkeypatch.setattr("spatial_forcing.rehearsal._rendered", rendered)
    options = {"teacher": "untrained-tiny", "layer": 1, "resolution": 28, "dtype": None}
    with training_flags([], batch_size=2, **options) as flags:
        assert {"--policy.forcing.layer=1", "--policy.forcing.resolution=28"} <= set(flags)
        assert examine_training(read_config(flags), Console(quiet=True), flags)
    assert not made[0].exists()
