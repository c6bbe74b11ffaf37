"""Reading action chunks without decoding the pictures beside them changes nothing but the time."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lerobot.datasets import io_utils
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from small_dataset import CAMERAS, make_dataset

from lerobot_policy_spatial_forcing.augment import track_geometry
from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.tracking_reader import TrackingReader
from spatial_forcing.chunks import ChunkReader, read_chunks_without_pictures

CHUNK = {"action": [-0.1, 0.0, 0.1, 0.2], "observation.state": [-0.1, 0.0]}
WITH_PICTURES = CHUNK | {CAMERAS[0]: [-0.1, 0.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("chunks") / "small", episodes=3, frames=4)


@pytest.fixture(autouse=True)
def lerobots_own(monkeypatch):
    """Every test starts with the reader as LeRobot made it."""
    now = DatasetReader.__init__
    while hasattr(now, "__wrapped__"):
        now = now.__wrapped__
    monkeypatch.setattr(DatasetReader, "__init__", now)
    return now


def opened(root, **options) -> LeRobotDataset:
    return LeRobotDataset("local/small", root=root, video_backend="pyav", **options)


def decoded(monkeypatch) -> list[object]:
    """Grows by one entry a decoded picture."""
    seen: list[object] = []
    plain = io_utils.pil_to_chw_tensor
    monkeypatch.setattr(io_utils, "pil_to_chw_tensor", lambda image: seen.append(1) or plain(image))
    return seen


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("episodes", [None, [0, 2]])
@pytest.mark.parametrize("deltas", [None, CHUNK, WITH_PICTURES], ids=["frames", "numbers", "pictures"])
@pytest.mark.parametrize("tracked", [False, True])
def test_frames_are_the_same(root, episodes, deltas, tracked):
    plain = opened(root, episodes=episodes, delta_timestamps=deltas)
    read_chunks_without_pictures()
    if tracked:
        track_geometry()
    quick = opened(root, episodes=episodes, delta_timestamps=deltas)
    assert type(plain.reader) is DatasetReader
    assert type(quick.reader) is (TrackingReader if tracked else ChunkReader)
    for i in range(len(plain)):
        assert_same(plain[i], quick[i])


def test_videos_are_the_same(tmp_path):
    root = make_dataset(tmp_path / "videos", episodes=2, frames=4, size=64, videos=True)
    plain = opened(root, delta_timestamps=WITH_PICTURES)
    read_chunks_without_pictures()
    quick = opened(root, delta_timestamps=WITH_PICTURES)
    for i in range(len(plain)):
        assert_same(plain[i], quick[i])


def test_only_what_is_asked_for_is_decoded(root, monkeypatch):
    seen = decoded(monkeypatch)

    def count(**options) -> int:
        dataset = opened(root, **options)
        seen.clear()
        dataset[1]
        return len(seen)

    slow = [count(delta_timestamps=deltas) for deltas in (CHUNK, WITH_PICTURES)]
    read_chunks_without_pictures()
    quick = [count(delta_timestamps=deltas) for deltas in (CHUNK, WITH_PICTURES)]
    assert slow == [2 * (1 + 4 + 2), 2 * (1 + 4 + 2 + 2)]
    assert quick == [2, 2 + 2]


def test_worker_processes_read_that_way_too(root, lerobots_own, monkeypatch):
    CLASSES["tiny"]()
    dataset = opened(root, delta_timestamps=CHUNK)
    frame = dataset[0]  # used before it is handed over
    sent = pickle.dumps(dataset)
    forked = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, timeout=200)
    assert_same(next(iter(forked)), frame)

    # As in a spawned worker, where nobody has switched anything on (test_augment.py spawns a real one).
    monkeypatch.setattr(DatasetReader, "__init__", lerobots_own)
    spawned = pickle.loads(sent)
    assert type(spawned.reader) is ChunkReader
    seen = decoded(monkeypatch)
    assert_same(spawned[0], frame)
    assert len(seen) == 2


def test_threads_may_share_a_data_set(root):
    read_chunks_without_pictures()
    dataset = opened(root, delta_timestamps=CHUNK)
    alone = [dataset[i] for i in range(len(dataset))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dataset.__getitem__, list(range(len(dataset))) * 8))
    for i, frame in enumerate(together):
        assert_same(frame, alone[i % len(alone)])


def test_it_is_switched_on_once_in_any_order():
    for _ in range(3):
        CLASSES["tiny"]()
        track_geometry()
        read_chunks_without_pictures()
    assert DatasetReader.__init__.__wrapped__.__wrapped__.__qualname__ == "DatasetReader.__init__"


def test_readers_of_ones_own_are_left_alone(root):
    class Mine(DatasetReader):
        pass

    read_chunks_without_pictures()
    dataset = opened(root)
    mine = Mine(dataset.meta, root, None, 1e-4, "pyav", None, None)
    assert type(mine) is Mine
