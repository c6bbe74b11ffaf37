"""Reading action chunks without decoding the pictures beside them changes nothing but the time."""

import pytest
import torch
from lerobot.datasets import io_utils
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from small_dataset import CAMERAS, make_dataset

from spatial_forcing.chunks import chunks_without_pictures

CHUNK = {"action": [-0.1, 0.0, 0.1, 0.2], "observation.state": [-0.1, 0.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("chunks") / "small", episodes=3, frames=4)


def decoded(monkeypatch) -> list[object]:
    """Grows by one entry a decoded picture."""
    seen: list[object] = []
    plain = io_utils.pil_to_chw_tensor
    monkeypatch.setattr(io_utils, "pil_to_chw_tensor", lambda image: seen.append(1) or plain(image))
    return seen


@pytest.mark.parametrize("episodes", [None, [0, 2]])
@pytest.mark.parametrize("deltas", [CHUNK, CHUNK | {CAMERAS[0]: [-0.1, 0.0]}], ids=["numbers", "pictures"])
def test_frames_are_the_same(root, episodes, deltas):
    dataset = LeRobotDataset("local/small", root=root, episodes=episodes, delta_timestamps=deltas)
    plain = [dataset[i] for i in range(len(dataset))]
    with chunks_without_pictures():
        quick = [dataset[i] for i in range(len(dataset))]
    for a, b in zip(plain, quick, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


def test_only_the_frame_itself_is_decoded(root, monkeypatch):
    dataset = LeRobotDataset("local/small", root=root, delta_timestamps=CHUNK)
    seen = decoded(monkeypatch)
    dataset[1]
    slow = len(seen)
    seen.clear()
    with chunks_without_pictures():
        dataset[1]
    assert (slow, len(seen)) == (2 * (1 + 4 + 2), 2)


def test_lerobot_is_as_before_afterwards(root):
    plain = DatasetReader._query_hf_dataset
    with pytest.raises(KeyError), chunks_without_pictures():
        raise KeyError
    assert DatasetReader._query_hf_dataset is plain
