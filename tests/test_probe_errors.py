"""Wrong input of every kind to spatial-forcing probe: one clear message, nothing read or written."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from small_dataset import CAMERAS
from small_depth import painted_dataset, saved_tiny

from spatial_forcing.datasets import DatasetError, open_dataset
from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.probe.command import probe
from spatial_forcing.probe.depths import check_aspect, recorded
from spatial_forcing.probe.frames import ProbeFrames, Split, split_episodes
from spatial_forcing.probe.points import columns_of
from spatial_forcing.probe.policies import check_sites, checkpoint_folder, load_policies, named_policies
from spatial_forcing.probe_options import ProbeOptions


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return painted_dataset(tmp_path_factory.mktemp("painted") / "set", episodes=3, frames=2, geometry=False)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, dataset) -> Path:
    return saved_tiny(tmp_path_factory.mktemp("policy") / "tiny", dataset)


def test_what_could_not_be_drawn_is_not_read(dataset, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    options = ProbeOptions(policies=(f"tiny={checkpoint}",), dataset=str(dataset), out=tmp_path / "out")
    with pytest.raises(MissingDependencyError, match=r"This needs matplotlib.*\[report\]"):
        probe(options, Console(quiet=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"policies": ("runs/a",)}, "given as name=folder"),
        ({"policies": ("a=x", "a=y")}, "The name 'a' is taken"),
        ({"policies": ("untrained host=x",)}, "is taken"),
        ({"policies": ()}, "Name the policies to probe"),
        ({"dataset": None}, "Name the data set"),
        ({"heads": ("linaer",)}, "Did you mean 'linear'"),
        ({"heads": ()}, "at least one head"),
        ({"heads": ("dpt",), "suggest_site": True}, "add linear to --heads"),
        ({"max_frames": 2}, "--max-frames must be at least 3"),
        ({"far": 0.0}, "--far must be above zero"),
        ({"depth": "measured"}, "--depth is recorded or pseudo:<model>"),
        ({"depth": "pseudo:"}, "--depth is recorded or pseudo:<model>"),
        ({"device": "cude"}, "is not a device"),
        ({"dataset": "nowhere"}, "does not exist"),
        ({"test_episodes": ("some",)}, "--test-episodes is a fraction"),
        ({"test_episodes": ("1.5",)}, "a fraction between 0 and 1"),
        ({"test_episodes": ("9",)}, r"no episodes \[9\] to test on: it has 3"),
        ({"test_episodes": ("0", "1")}, "at least three episodes"),
        ({"positions": ("hand=observation.state",)}, "given as name=column:x,y,z"),
        ({"rename": ("front",)}, "--rename takes"),
        ({"depth": "recorded"}, "The data set has no depth: .* --depth pseudo:vggt-1b"),
        ({"depth": "pseudo:nobody"}, "Unknown depth model"),
        ({"depth": "pseudo:untrained-tiny"}, "has no depth head"),
        ({"sites": ("blocks.9",)}, r"has no site 'blocks.9'. It has blocks.0 to blocks.3"),
        ({"sites": ()}, "Name sites to probe"),
        ({"rerun": True}, r"needs rerun-sdk. Install it with: pip install .*\[viewer\]"),
    ],
)
def test_a_wrong_option_is_said_and_nothing_is_written(changed, message, dataset, checkpoint, tmp_path):
    right = {"policies": (f"plain={checkpoint}",), "dataset": str(dataset), "out": tmp_path / "out"}
    with pytest.raises(SpatialForcingError, match=message):
        probe(ProbeOptions(**{**right, **changed}), Console(quiet=True))
    assert not list(tmp_path.iterdir())


def test_a_policy_of_an_unknown_type_is_refused_with_those_that_are_known(dataset, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"type": "vqbet"}))
    with pytest.raises(SpatialForcingError, match=r"of type 'vqbet'.*records of: act, .*smolvla"):
        load_policies({"mine": str(tmp_path)}, open_dataset(dataset))


def test_policies_with_other_cameras_cannot_be_compared(dataset, checkpoint, tmp_path):
    one_eyed = saved_tiny(tmp_path / "one", dataset, cameras=CAMERAS[:1])
    with pytest.raises(SpatialForcingError, match=r"see the same cameras.*plain sees.*left sees"):
        load_policies({"plain": str(checkpoint), "left": str(one_eyed)}, open_dataset(dataset))


def test_a_camera_under_another_name_is_asked_for_and_can_be_named(dataset, tmp_path):
    other = saved_tiny(tmp_path / "other", dataset, cameras=("observation.images.front",))
    frames = open_dataset(dataset)
    with pytest.raises(SpatialForcingError, match="Say which is which: --rename"):
        load_policies({"other": str(other)}, frames)
    (policy,) = load_policies({"other": str(other)}, frames, rename={CAMERAS[1]: "observation.images.front"})
    assert dict(policy.cameras) == {"observation.images.front": CAMERAS[1]}
    batch = policy.prepared(
        {key: value[None] if hasattr(value, "ndim") else [value] for key, value in frames[0].items()}
    )
    assert "observation.images.front" in batch


def test_a_checkpoint_is_found_in_a_run_and_a_name_of_the_hub_is_tried(tmp_path):
    last = tmp_path / "run" / "checkpoints" / "last" / "pretrained_model"
    last.mkdir(parents=True)
    (last / "config.json").write_text("{}")
    assert checkpoint_folder(str(tmp_path / "run")) == last
    with pytest.raises(SpatialForcingError, match="is no checkpoint of a policy"):
        checkpoint_folder(str(tmp_path))
    with pytest.raises(SpatialForcingError, match="could not be read from the Hub"):
        checkpoint_folder("nobody/nothing")
    with pytest.raises(SpatialForcingError, match="does not exist"):
        checkpoint_folder(str(tmp_path / "none" / "there"))


def test_sites_are_counted_from_the_front_and_named_once(dataset, checkpoint):
    (policy,) = load_policies({"plain": str(checkpoint)}, open_dataset(dataset))
    assert check_sites(policy, ["blocks.-1", "blocks.3", "blocks.0"]) == ["blocks.3", "blocks.0"]
    assert check_sites(policy, ["all"]) == ["blocks.1", "blocks.2", "blocks.3"]


def test_episodes_are_split_once_and_for_all():
    split = split_episodes(50, 0.2)
    assert split == split_episodes(50, 0.2)
    assert len(split.test) == 10
    assert sorted(split.train + split.test) == list(range(50))
    assert set(split.held) < set(split.train)
    with pytest.raises(SpatialForcingError, match="at least three episodes"):
        split_episodes(1, 0.2)
    with pytest.raises(SpatialForcingError, match="in both training and test"):
        Split((0, 1, 2), (2, 3))


def test_episodes_of_which_no_frame_is_looked_at_do_not_count():
    rows = [{"dataset_from_index": 10 * e, "dataset_to_index": 10 * e + 10} for e in range(50)]
    dataset = SimpleNamespace(meta=SimpleNamespace(episodes=rows))
    split = split_episodes(50, 0.2)
    for most, train, test in ((None, 40, 10), (25, 20, 5), (5, 4, 1)):
        frames = ProbeFrames(dataset, split, most)
        assert (len(frames.episodes("train")), len(frames.episodes("test"))) == (train, test)
        for phase, of in (("train", split.train), ("test", split.test)):
            assert set(frames.episodes(phase)) == {i // 10 for i in frames.indices[phase]} <= set(of)


def test_depth_of_another_aspect_ratio_is_refused_and_of_another_resolution_is_not():
    image = torch.zeros(1, 3, 480, 640)
    check_aspect("front", torch.zeros(1, 120, 160), image)
    with pytest.raises(SpatialForcingError, match="front is 128 x 128 and its images are 480 x 640"):
        check_aspect("front", torch.zeros(1, 128, 128), image)


def test_positions_that_are_not_there_are_named(dataset):
    frames = open_dataset(dataset)
    with pytest.raises(SpatialForcingError, match=r"Unknown column of the data set 'observation.stat'"):
        columns_of(["hand=observation.stat:0,1,2"], frames)
    with pytest.raises(SpatialForcingError, match=r"observation.state has 4 elements"):
        columns_of(["hand=observation.state:2,3,4"], frames)
    assert columns_of([], frames) == {}


def test_depth_of_a_camera_that_has_none_is_named(tmp_path):
    meta = SimpleNamespace(depth_keys=["observation.images.left_depth", "observation.images.top_depth"])
    dataset = SimpleNamespace(root=tmp_path, meta=meta)
    with pytest.raises(SpatialForcingError, match=r"no depth of observation.images.right"):
        recorded(dataset, CAMERAS)


def test_a_folder_that_is_no_data_set_is_said(tmp_path):
    with pytest.raises(DatasetError, match="not a LeRobotDataset"):
        probe(ProbeOptions(policies=("a=b/c",), dataset=str(tmp_path)), Console(quiet=True))


def test_a_name_may_hold_an_equals_sign_after_the_first():
    assert named_policies(["a=runs/lr=1"]) == {"a": "runs/lr=1"}
