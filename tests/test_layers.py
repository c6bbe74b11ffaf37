"""Caches of several layers are written: each is the cache of that layer alone, from one pass over frames."""

import pytest
from small_layers import FRAMES, HIGH, LOW, Camera, Teacher, alone, contents, small_shards, write

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layers import layer_folder
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.write import Share, Watch
from spatial_forcing.files import size_text


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


@pytest.mark.parametrize("codec", ["pca-int8", "float16", "raw"])
@pytest.mark.parametrize("batch_size", [4, 8, 7])
def test_each_layer_has_the_bytes_of_a_cache_of_it_alone(tmp_path, codec, batch_size):
    options = CodecOptions(codec)
    write(tmp_path / "both", HIGH, LOW, batch_size=batch_size, options=options)
    for layer in (LOW, HIGH):
        wanted = alone(tmp_path / str(layer), layer, batch_size, options)
        assert contents(layer_folder(tmp_path / "both", layer)) == wanted
    assert {path.name for path in (tmp_path / "both").iterdir()} == {f"layer-{LOW}", f"layer-{HIGH}"}


def test_the_layers_are_cut_differently_and_yet_a_frame_is_looked_at_once(tmp_path):
    camera, teacher, plans, done = Camera(), Teacher(), [], []
    write(tmp_path, LOW, HIGH, frames=camera, teacher=teacher, watch=Watch(plans.append, done.append))
    count = {layer: len(list(layer_folder(tmp_path, layer).glob("shard-*"))) for layer in (LOW, HIGH)}
    assert count == {LOW: 3, HIGH: 10}
    assert camera.read == teacher.seen == 2 * FRAMES, "once for the codecs, once to be stored"
    (plan,) = plans
    assert (plan.share, plan.mine, sum(done)) == (FRAMES, FRAMES, FRAMES)
    assert {layer: codec["components"] for layer, codec in plan.codecs.items()} == {LOW: 4, HIGH: 12}
    stored = sum(len(part) for name, part in contents(tmp_path).items() if "shard" in name)
    assert plan.stored_bytes == FRAMES * (48 + 112) < stored, size_text(stored)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_shares_add_up_to_the_same_bytes_and_to_one_pass(tmp_path, order):
    wanted = contents(write(tmp_path / "straight", LOW, HIGH))
    cameras = [Camera() for _ in order]
    for rank in order:
        with pytest.raises(CacheError, match=r"no feature cache|unfinished"):
            FeatureStore(tmp_path / "shared", layer=LOW)
        write(tmp_path / "shared", LOW, HIGH, share=Share(rank, 3), frames=cameras[rank])
    assert contents(tmp_path / "shared") == wanted
    assert sum(camera.read for camera in cameras) == 2 * FRAMES


@pytest.mark.parametrize("limit", [10, FRAMES + 3, FRAMES + 18, 2 * FRAMES - 1])
def test_interrupted_and_continued_the_bytes_are_the_same(tmp_path, limit):
    wanted, camera = contents(write(tmp_path / "straight", LOW, HIGH)), Camera()
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "broken", LOW, HIGH, teacher=Teacher(limit))
    assert (tmp_path / "broken").exists() == (limit > FRAMES), "a start that found no codec leaves nothing"
    write(tmp_path / "broken", LOW, HIGH, frames=camera)
    assert contents(tmp_path / "broken") == wanted
    if limit == FRAMES + 18:
        assert camera.read == FRAMES - 16, "of 16 frames both layers were there"


def test_a_layer_is_added_and_the_others_are_not_touched(tmp_path):
    write(tmp_path, LOW)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    teacher, done = Teacher(), []
    write(tmp_path, LOW, HIGH, teacher=teacher)
    assert teacher.asked == {HIGH}
    assert before == {path: path.stat().st_mtime_ns for path in before}
    write(tmp_path, HIGH, LOW, teacher=Teacher(limit=0), watch=Watch(advance=done.append))
    assert done == [FRAMES]
    wanted = alone(tmp_path.with_name("alone"), HIGH)
    assert contents(layer_folder(tmp_path, HIGH)) == wanted


def test_several_layers_need_a_folder_of_their_own(tmp_path):
    before = alone(tmp_path / "one", LOW)
    with pytest.raises(CacheError, match="of one layer, and several need folders of their own"):
        write(tmp_path / "one", LOW, HIGH)
    assert contents(tmp_path / "one") == before
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(CacheError, match="is not empty and holds no feature cache"):
        write(tmp_path / "thesis", LOW, HIGH)
    assert list(contents(tmp_path / "thesis")) == ["thesis.tex"]


def test_a_failed_start_leaves_nothing(tmp_path):
    for options, error in (
        ({"teacher": Teacher(0)}, KeyboardInterrupt),
        ({"batch_size": 0}, CacheError),
        ({"options": CodecOptions("pca-int8", components=99)}, Exception),
    ):
        with pytest.raises(error):
            write(tmp_path / "deep" / "c", LOW, HIGH, **options)
        assert not list(tmp_path.iterdir())


def test_two_writers_of_one_layer_are_refused(tmp_path):
    class Nosy(Teacher):
        def layers_of(self, images, layers):
            with pytest.raises(CacheError, match="Another process is writing share 0 of 1"):
                write(tmp_path, HIGH, 1)
            return super().layers_of(images, layers)

    write(tmp_path, LOW, HIGH, teacher=Nosy())
    assert not layer_folder(tmp_path, 1).exists()
