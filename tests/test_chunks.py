"""Reading action chunks without decoding the images beside them changes nothing but the time."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from lerobot.datasets import io_utils
from lerobot.datasets.dataset_reader import DatasetReader
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from small_dataset import CAMERAS, make_dataset

from spatial_forcing import patches
from spatial_forcing.chunks import ChunkReader, read_chunks_alone
from spatial_forcing.patches.readers import TrackingReader

CHUNK = {"action": [-0.1, 0.0, 0.1, 0.2], "observation.state": [-0.1, 0.0]}
WITH_PICTURES = CHUNK | {CAMERAS[0]: [-0.1, 0.0]}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("chunks") / "small", episodes=3, frames=4)


@pytest.fixture(autouse=True)
def lerobots_own():
    """Every test starts and ends with LeRobot as it is."""
    patches.undo_all()
    yield
    patches.undo_all()


def opened(root, **options) -> LeRobotDataset:
    return LeRobotDataset("local/small", root=root, video_backend="pyav", **options)


def decoded(monkeypatch) -> list[object]:
    """Grows by one entry a decoded image."""
    seen: list[object] = []
    plain = io_utils.pil_to_chw_tensor
    monkeypatch.setattr(io_utils, "pil_to_chw_tensor", lambda image: seen.append(1) or plain(image))
    return seen


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) if torch.is_tensor(a[k]) else a[k] == b[k] for k in a)


@pytest.mark.parametrize("episodes", [None, [0, 2]])
@pytest.mark.parametrize("deltas", [None, CHUNK, WITH_PICTURES], ids=["frames", "numbers", "images"])
@pytest.mark.parametrize("tracked", [False, True])
def test_frames_are_the_same(root, episodes, deltas, tracked):
    plain = opened(root, episodes=episodes, delta_timestamps=deltas)
    quick = opened(root, episodes=episodes, delta_timestamps=deltas)
    before = [plain[i] for i in range(len(plain))]
    assert type(plain.reader) is DatasetReader
    patches.read_chunks_without_images()  # after the data set is made, as LeRobot's trainer makes it
    if tracked:
        patches.track_image_transforms()
    for i, frame in enumerate(before):
        assert_same(frame, quick[i])
    assert type(quick.reader) is (TrackingReader if tracked else ChunkReader)


def test_a_data_set_of_ones_own_needs_no_patch(root, monkeypatch):
    plain, quick = (opened(root, delta_timestamps=CHUNK) for _ in range(2))
    assert read_chunks_alone(quick) is quick
    assert not patches.replaced()
    seen = decoded(monkeypatch)
    counts = []
    for dataset in (plain, quick):
        seen.clear()
        frame = dataset[1]
        counts.append(len(seen))
        assert_same(frame, plain[1])
    assert counts == [2 * (1 + 4 + 2), 2]


def test_videos_are_the_same(tmp_path):
    root = make_dataset(tmp_path / "videos", episodes=2, frames=4, size=64, videos=True)
    plain = opened(root, delta_timestamps=WITH_PICTURES)
    quick = read_chunks_alone(opened(root, delta_timestamps=WITH_PICTURES))
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
    patches.read_chunks_without_images()
    quick = [count(delta_timestamps=deltas) for deltas in (CHUNK, WITH_PICTURES)]
    assert slow == [2 * (1 + 4 + 2), 2 * (1 + 4 + 2 + 2)]
    assert quick == [2, 2 + 2]


@pytest.mark.parametrize("used_before", [True, False])
def test_worker_processes_read_that_way_too(root, monkeypatch, used_before):
    dataset = opened(root, delta_timestamps=CHUNK)
    frame = opened(root, delta_timestamps=CHUNK)[0]
    patches.read_chunks_without_images()
    if used_before:
        assert_same(dataset[0], frame)
    sent = pickle.dumps(dataset)
    forked = torch.utils.data.DataLoader(dataset, batch_size=None, num_workers=1, timeout=200)
    assert_same(next(iter(forked)), frame)

    # As in a spawned worker, where nobody has switched anything on (test_augment.py spawns a real one).
    patches.undo_all()
    spawned = pickle.loads(sent)
    assert type(spawned.reader) is ChunkReader
    seen = decoded(monkeypatch)
    assert_same(spawned[0], frame)
    assert len(seen) == 2


def test_threads_may_share_a_data_set(root):
    patches.read_chunks_without_images()
    dataset = opened(root, delta_timestamps=CHUNK)
    alone = [dataset[i] for i in range(len(dataset))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(dataset.__getitem__, list(range(len(dataset))) * 8))
    for i, frame in enumerate(together):
        assert_same(frame, alone[i % len(alone)])


@pytest.mark.parametrize("chunks_first", [True, False])
def test_both_patches_act_in_either_order(root, chunks_first):
    dataset, read = opened(root, delta_timestamps=CHUNK), opened(root, delta_timestamps=CHUNK)
    both = [patches.read_chunks_without_images, patches.track_image_transforms]
    for switch_on in both if chunks_first else reversed(both):
        switch_on()
        read[0]
    dataset[0], read[0]
    assert type(dataset.reader) is type(read.reader) is TrackingReader


def test_they_are_switched_on_once():
    for _ in range(3):
        patches.track_image_transforms()
        patches.read_chunks_without_images()
    assert sorted(patches.replaced()) == sorted(
        2 * ["DatasetReader.get_item", "DatasetReader.__reduce_ex__"]
        + ["StreamingLeRobotDataset.__iter__", "StreamingLeRobotDataset.__reduce_ex__"]
    )


def test_readers_of_ones_own_are_left_alone(root):
    class Mine(DatasetReader):
        pass

    patches.read_chunks_without_images()
    dataset = opened(root)
    mine = Mine(dataset.meta, root, None, 1e-4, "pyav", None, None)
    mine.load_and_activate()
    assert_same(mine.get_item(0), dataset[0])
    assert type(mine) is Mine
