"""Patches of LeRobot: none by importing or building a configuration, and a clear word when it has changed."""

import json
import subprocess
import sys
from importlib import import_module
from operator import attrgetter

import pytest
from lerobot.datasets.dataset_reader import DatasetReader

from spatial_forcing import patches
from spatial_forcing.patches import PATCHES, LeRobotChanged


@pytest.fixture(autouse=True)
def lerobots_own(monkeypatch):
    """Every test starts and ends with LeRobot as it is; what a test changes in it is restored last."""
    patches.undo_all()
    yield
    patches.undo_all()


# Everything that any patch replaces, inside the modules that it names.
TOUCHED = {
    "lerobot.datasets.dataset_reader": ["DatasetReader.get_item", "DatasetReader.__reduce_ex__"],
    "lerobot.datasets.streaming_dataset": [
        "StreamingLeRobotDataset.__iter__",
        "StreamingLeRobotDataset.__reduce_ex__",
    ],
    "lerobot.policies.groot.processor_groot": [
        "GrootN17PackInputsStep.__call__",
        "GrootN17VLMEncodeStep.__call__",
        "_transform_n1_7_image_for_vlm_torch",
        "_transform_n1_7_image_for_vlm_albumentations",
    ],
    "lerobot.configs": ["PreTrainedConfig.from_pretrained.__func__"],
    "lerobot.scripts.lerobot_train": [
        "make_pre_post_processors",
        "update_policy",
        "init_logging",
        "inside_slurm",
    ],
    "sys": ["excepthook"],
}

IMPORTED = f"""
import json, sys
from importlib import import_module
from operator import attrgetter

def now():
    return [repr(attrgetter(path)(import_module(m))) for m, paths in {TOUCHED!r}.items() for path in paths]

from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.configs import PreTrainedConfig
before = now()
register_third_party_plugins()
types = []
for name in PreTrainedConfig.get_known_choices():
    if name.startswith("sf_"):
        config_class = PreTrainedConfig.get_choice_class(name)
        try:
            config = config_class(device="cpu")
        except OSError:
            continue  # it asks the Hub for its language model
        config.forcing.cache, config.forcing.cameras = "somewhere", ["a", "b"]
        types.append(name)
from lerobot.policies.factory import make_policy_config
make_policy_config("sf_tiny", device="cpu")
from spatial_forcing import patches
print(json.dumps([types, before, now(), patches.replaced()]))
"""


@pytest.mark.system
def test_importing_the_plug_in_and_building_configurations_patches_nothing():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IMPORTED], capture_output=True, text=True, timeout=250
    )
    assert done.returncode == 0, done.stderr[-2000:]
    types, before, after, replaced = json.loads(done.stdout.splitlines()[-1])
    assert {"sf_tiny", "sf_smolvla", "sf_act", "sf_pi0", "sf_groot"} <= set(types)
    assert before == after
    assert replaced == []


def test_every_patch_says_what_and_why_and_touches_what_it_says():
    assert len({patch.name for patch in PATCHES}) == len(PATCHES)
    for patch in PATCHES:
        for about in vars(patch).values():
            assert about.strip()
    said = " ".join(patch.target for patch in PATCHES)
    for module, paths in TOUCHED.items():
        for path in paths:
            attrgetter(path)(import_module(module))  # there in this LeRobot
            last = path.removesuffix(".__func__").rpartition(".")[2]
            assert last in said or last.startswith("_transform")
    patches.read_chunks_without_images()
    patches.track_image_transforms()
    patches.track_groot_crops()
    patches.take_forcing_flags()
    known = {path.removesuffix(".__func__") for paths in TOUCHED.values() for path in paths}
    assert set(patches.replaced()) <= known


def test_patches_are_taken_back_whatever_the_order():
    before = DatasetReader.get_item
    for switch_on in (patches.track_image_transforms, patches.read_chunks_without_images):
        switch_on()
    assert DatasetReader.get_item is not before
    patches.undo_all()
    assert DatasetReader.get_item is before
    assert "__reduce_ex__" not in vars(DatasetReader)
    assert not patches.replaced()


# ---- LeRobot has changed -----------------------------------------------------------------------------------


def changed(monkeypatch, module: str, path: str, new: object) -> None:
    owner, _, name = path.rpartition(".")
    home = import_module(module)
    monkeypatch.setattr(attrgetter(owner)(home) if owner else home, name, new)


READER = "lerobot.datasets.dataset_reader"
GROOT = "lerobot.policies.groot.processor_groot"
CHANGES = [
    (patches.track_image_transforms, READER, "DatasetReader.get_item", lambda self, at: at, "no idx"),
    (
        patches.track_image_transforms,
        READER,
        "DatasetReader.get_item",
        lambda self, idx: idx,
        "uses no _image_tr",
    ),
    (
        patches.track_groot_crops,
        GROOT,
        "_transform_n1_7_image_for_vlm_torch",
        lambda image: image,
        "no image_crop",
    ),
    (
        patches.take_forcing_flags,
        "lerobot.configs",
        "PreTrainedConfig.from_pretrained",
        lambda cls: 0,
        "no pretr",
    ),
]


@pytest.mark.parametrize(("switch_on", "module", "path", "new", "says"), CHANGES)
def test_a_changed_lerobot_is_refused_with_what_is_off(monkeypatch, switch_on, module, path, new, says):
    changed(monkeypatch, module, path, new)
    with pytest.raises(LeRobotChanged, match=rf"LeRobot has changed \(.* is installed\).*{says}.*0\.6\.1"):
        switch_on()
    assert not patches.replaced()


def test_an_option_of_groots_crop_that_is_not_known_is_refused(monkeypatch):
    groot = import_module(GROOT)
    plain = groot._transform_n1_7_image_for_vlm_torch

    def rotating(
        image,
        *,
        image_crop_size,
        image_target_size,
        shortest_image_edge,
        crop_fraction,
        letter_box_transform=False,
        rotation=0.0,
    ):
        return plain(image)

    monkeypatch.setattr(groot, "_transform_n1_7_image_for_vlm_torch", rotating)
    with pytest.raises(LeRobotChanged, match=r"takes rotation besides.*stored features.*refused"):
        patches.track_groot_crops()


def test_a_part_that_is_gone_is_refused(monkeypatch):
    groot = import_module(GROOT)
    monkeypatch.delattr(groot, "GrootN17VLMEncodeStep")
    with pytest.raises(LeRobotChanged, match="has no GrootN17VLMEncodeStep"):
        patches.track_groot_crops()


def test_of_what_only_makes_it_quicker_one_is_warned(monkeypatch, caplog):
    changed(monkeypatch, READER, "DatasetReader._query_hf_dataset", lambda self: {})
    patches.read_chunks_without_images()
    assert "no query_indices" in caplog.text
    assert "slower, the frames are the same" in caplog.text
    assert not patches.replaced()


def test_the_trainer_is_itself_again_afterwards():
    from lerobot.scripts import lerobot_train

    before = lerobot_train.update_policy
    stopping = patches.trainer_with({"update_policy": len})
    assert stopping.__enter__().update_policy is len
    assert not stopping.__exit__(ZeroDivisionError, ZeroDivisionError(), None)  # the error goes on
    assert lerobot_train.update_policy is before
    missing = patches.trainer_with({"nosuch": len})
    with pytest.raises(LeRobotChanged, match=r"has no nosuch.*The doctor cannot look"):
        missing.__enter__()


def test_what_lerobot_asks_of_a_type_beyond_what_is_known_is_refused(monkeypatch):
    patches.take_forcing_flags()
    from spatial_forcing.patches.checkpoint_flags import ForcedChoices

    with pytest.raises(LeRobotChanged, match="asks its class for default_choice_name"):
        ForcedChoices(patches.FLAGS, None).default_choice_name()


def test_training_toward_stored_features_is_refused_if_they_cannot_follow(monkeypatch):
    from lerobot.policies.factory import get_policy_class, make_policy_config
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()
    changed(monkeypatch, READER, "DatasetReader.get_item", lambda self, idx: idx)
    config = make_policy_config("sf_tiny", device="cpu")
    config.forcing.cache = "somewhere"
    with pytest.raises(LeRobotChanged, match=r"stored features \(forcing.cache\) is refused.*teacher online"):
        get_policy_class("sf_tiny")(config)
