"""The doctor on every host record, through LeRobot's trainer: what trains passes, what is wrong is said."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small_dataset import datasets_of_size
from small_policies import LEFT, PICTURE, RIGHT, SMALL, small_config, small_parts
from training_configs import train_config

from spatial_forcing import SpatialForcingError, load_teacher
from spatial_forcing.cache.extract import extract
from spatial_forcing.doctor import Findings, diagnose
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.rehearsal import FirstStep, first_step

pytestmark = pytest.mark.usefixtures("groot_untouched")
MIXED = {LEFT: SMALL, RIGHT: (64, 40)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Callable[[Any], Path]:
    return datasets_of_size(tmp_path_factory.mktemp("data"))


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
