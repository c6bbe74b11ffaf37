"""Caches of several layers: each is the cache of that layer alone, read, damaged and repaired by itself."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from spatial_forcing.cache import shards
from spatial_forcing.cache.claim import check_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layers import layer_folder
from spatial_forcing.cache.layout import Source
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.verify import broken_files, repair
from spatial_forcing.cache.write import Share, Watch, write_features, write_layers
from spatial_forcing.files import size_text
from spatial_forcing.grid import Features

FRAMES, WIDTH = 40, 16
LOW, HIGH = 3, 7  # a layer that four components hold, and one that takes twelve
PCA = CodecOptions("pca-int8")


def table(layer: int) -> Tensor:
    """tokens_FVHWC of a layer, of few or of many directions."""
    random_ = torch.Generator().manual_seed(layer)
    rank = 3 if layer == LOW else WIDTH
    mixing = torch.randn(rank, WIDTH, generator=random_)
    return torch.randn(FRAMES, 2, 2, 2, rank, generator=random_) @ mixing + layer


TABLES = {layer: table(layer) for layer in (LOW, HIGH, 1)}


class Teacher:
    """Features of several layers, one look at a time; stops after ``limit`` frames."""

    def __init__(self, limit: int = 10**9):
        self.seen, self.asked, self.limit = 0, set(), limit

    def layers_of(self, images: Tensor, layers: tuple[int, ...]) -> dict[int, Features]:
        self.seen += len(images)
        self.asked |= set(layers)
        if self.seen > self.limit:
            raise KeyboardInterrupt
        index = (images[:, 0, 0, 0, 0] * 100).round().long()
        valid = torch.ones(len(index), 2, 2, 2, dtype=torch.bool)
        return {layer: Features(TABLES[layer][index], valid) for layer in layers}

    def of(self, layer: int) -> Callable[[Tensor], Features]:
        return lambda images: self.layers_of(images, (layer,))[layer]


class Camera:
    """Images that say which frame they are of; counts how often a frame is decoded."""

    def __init__(self) -> None:
        self.read = 0

    def __call__(self, indices: list[int]) -> Tensor:
        self.read += len(indices)
        return torch.tensor(indices).view(-1, 1, 1, 1, 1).expand(-1, 2, 3, 4, 4) / 100


def source(layer: int, **changes) -> Source:
    of = Source("t", f"f{layer}", "Apache-2.0", "d1", ("left", "right"), FRAMES, layer=layer, layers=9)
    return replace(of, **changes)


def sources(*layers: int, **changes) -> dict[int, Source]:
    return {layer: source(layer, **changes) for layer in layers}


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    """Shards of 16 and of 4 frames for LOW and HIGH: 48 and 112 bytes per frame."""
    monkeypatch.setattr(shards, "SHARD_BYTES", 800)
    monkeypatch.setattr(shards, "LEAST_SHARDS", 1)


def write(root: Path, *layers: int, teacher: Teacher | None = None, **options) -> Path:
    options = {"options": PCA, "batch_size": 4} | options
    look = (teacher or Teacher()).layers_of
    return write_layers(root, sources(*layers), options.pop("frames", Camera()), look, **options)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def alone(root: Path, layer: int, batch_size: int = 4, options: CodecOptions = PCA) -> dict[str, bytes]:
    """What a cache of one layer holds."""
    write_features(root, source(layer), Camera(), Teacher().of(layer), options=options, batch_size=batch_size)
    return contents(root)


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


# ---- reading -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "SHARD_BYTES", 800)
        patch.setattr(shards, "LEAST_SHARDS", 1)
        yield write(tmp_path_factory.mktemp("cache") / "both", LOW, HIGH)


def tokens_of(root: Path, layer: int | None) -> Tensor:
    return FeatureStore(root, layer=layer).read(torch.arange(FRAMES)).tokens_BVHWC


@pytest.mark.parametrize(("layer", "other"), [(LOW, HIGH), (HIGH, LOW)])
def test_a_layer_is_read_without_a_byte_of_the_others(both, tmp_path, layer, other):
    assert torch.cosine_similarity(tokens_of(both, layer), TABLES[layer], dim=-1).mean() > 0.98
    assert torch.cosine_similarity(tokens_of(both, layer), TABLES[other], dim=-1).mean() < 0.9
    store = FeatureStore(both, layer=layer)
    assert (store.source.layer, store.fingerprint) == (layer, f"f{layer}")
    assert torch.equal(tokens_of(both, layer - 9), tokens_of(both, layer)), "counted from the end"
    shutil.copytree(both, tmp_path / "c")
    for path in layer_folder(tmp_path / "c", other).iterdir():
        path.write_bytes(b"")
    assert torch.equal(tokens_of(tmp_path / "c", layer), tokens_of(both, layer))
    shutil.rmtree(layer_folder(tmp_path / "c", other))
    assert torch.equal(tokens_of(tmp_path / "c", None), tokens_of(both, layer)), "the only one"
    assert torch.equal(tokens_of(layer_folder(both, layer), None), tokens_of(both, layer)), (
        "a cache by itself"
    )


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (None, r"holds the layers 3, 7 of its teacher\. Say which: --policy\.forcing\.layer"),
        (5, r"the layers 3, 7 of its teacher, and layer 5 is asked for\. Add it: .* --layers 5"),
        (-1, "layer -1 is asked for"),
        (99, "layer 99 is asked for"),
        (3.5, "a whole number"),
        (True, "a whole number"),
        ("3", "a whole number"),
    ],
)
def test_a_layer_that_is_not_there_is_an_error_that_lists_those_that_are(both, layer, says):
    with pytest.raises(CacheError, match=says):
        FeatureStore(both, layer=layer)


def test_a_cache_of_one_layer_is_that_layers(tmp_path):
    alone(tmp_path / "one", LOW)
    assert torch.equal(tokens_of(tmp_path / "one", LOW), tokens_of(tmp_path / "one", None))
    assert torch.equal(tokens_of(tmp_path / "one", LOW - 9), tokens_of(tmp_path / "one", None))
    with pytest.raises(CacheError, match=r"written with layer 3, and layer 7 is asked for"):
        FeatureStore(tmp_path / "one", layer=HIGH)


# ---- what does not belong together -------------------------------------------------------------------------


def test_layers_of_something_else_are_refused_and_nothing_is_lost(both):
    before, camera = contents(both), Camera()

    def fails(says: str, wanted: dict[int, Source], **options) -> None:
        with pytest.raises(CacheError, match=says):
            write_layers(
                both, wanted, camera, Teacher(0).layers_of, **{"options": PCA, "batch_size": 4} | options
            )

    for layer in (LOW, 1):  # there, and beside those that are
        fails("teacher: 't' there, 'u' wanted", sources(layer, teacher="u"))
        fails("dataset: 'd1' there, 'd2' wanted", sources(layer, dataset="d2"))
        fails("codec.kind: 'pca-int8' there, 'raw' wanted", sources(layer), options=CodecOptions("raw"))
        fails("batch_size: 4 there, 5 wanted", sources(layer), batch_size=5)
    fails("teacher_fingerprint: 'f3' there, 'g' wanted", sources(LOW, teacher_fingerprint="g"))
    check_teacher(both, lambda layer: f"f{layer}", 9)
    with pytest.raises(
        CacheError, match=r"Layer 3 in .* fingerprint f3, and this teacher's is g3: other weights"
    ):
        check_teacher(both, lambda layer: f"g{layer}", 9)
    with pytest.raises(CacheError, match=r"several layers \(3, 7\)\. To add one: .* --layers"):
        write_features(both, source(1), camera, Teacher(0).of(1), options=PCA)
    assert contents(both) == before
    assert camera.read == 0


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


# ---- damage ------------------------------------------------------------------------------------------------

Damage = Callable[[Path], None]


def damages(root: Path) -> Iterator[tuple[str, Damage]]:
    """Ways to damage a cache, each with the file's name: flipped bits, lost ends, zeros, files mixed up."""
    chance = random.Random(0)
    files = sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())
    for name in files:
        size = (root / name).stat().st_size
        for number, at in enumerate((0, size - 1, *(chance.randrange(size) for _ in range(20)))):
            yield str(name), lambda c, name=name, at=at, bit=number % 8: flip(c / name, at, bit)
        for keep in (0, chance.randrange(size), size - 1):
            yield str(name), lambda c, name=name, keep=keep: os.truncate(c / name, keep)
        yield str(name), lambda c, name=name: (c / name).unlink()
        yield str(name), lambda c, name=name, size=size: (c / name).write_bytes(bytes(size))
        for other in (
            chance.choice(files),
            Path(f"layer-{LOW if str(HIGH) in name.parts[0] else HIGH}") / name.name,
        ):
            if (root / other).is_file() and other != name:
                yield str(name), lambda c, name=name, other=other: shutil.copyfile(root / other, c / name)


def flip(path: Path, at: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << bit
    path.write_bytes(data)


def test_of_hundreds_of_damaged_caches_none_gives_a_wrong_target(both, tmp_path):
    wanted = {layer: FeatureStore(both, layer=layer) for layer in (LOW, HIGH)}
    tokens = {layer: tokens_of(both, layer) for layer in wanted}
    copy, tried, refused = tmp_path / "c", 0, 0
    shutil.copytree(both, copy)
    for name, damage in damages(both):
        damage(copy)
        tried += 1
        for layer, of in wanted.items():
            same_file = (copy / name).is_file() and (copy / name).read_bytes() == (both / name).read_bytes()
            try:
                store = FeatureStore(copy, layer=layer)
                read = store.read(torch.arange(FRAMES)).tokens_BVHWC
            except CacheError:
                refused += 1
                assert f"layer-{layer}" in name, f"damage in {name} is seen by layer {layer}"
            else:
                assert torch.equal(read, tokens[layer]), f"{name}: a wrong target of layer {layer}"
                assert (store.source, store.fingerprint) == (of.source, of.fingerprint), name
                assert all(map(torch.equal, store.stats, of.stats)), name
                unread = "source.json" in name or f"layer-{layer}" not in name or same_file
                assert unread or "manifest" in name, f"damage in {name} goes unnoticed"
        shutil.copyfile(both / name, copy / name)
    assert tried > 450
    assert refused > 0.75 * tried, (tried, refused)


def test_folders_of_two_layers_that_were_exchanged_are_noticed(both, tmp_path):
    shutil.copytree(both, tmp_path / "c")
    low, high = (layer_folder(tmp_path / "c", layer) for layer in (LOW, HIGH))
    low.rename(tmp_path / "aside")
    high.rename(low)
    (tmp_path / "aside").rename(high)
    for layer, other in ((LOW, HIGH), (HIGH, LOW)):
        with pytest.raises(
            CacheError, match=f"layer-{layer} holds layer {other}: the folder has been renamed"
        ):
            FeatureStore(tmp_path / "c", layer=layer)


@pytest.mark.parametrize("victim", ["codec.safetensors", "shard-00001.safetensors"])
def test_one_layer_is_repaired_alone(both, tmp_path, victim):
    shutil.copytree(both, tmp_path / "c")
    before, folder, teacher = contents(tmp_path / "c"), layer_folder(tmp_path / "c", HIGH), Teacher()
    flip(folder / victim, 40, 3)
    assert broken_files(layer_folder(tmp_path / "c", LOW)) == {}
    assert list(broken_files(folder)) == [victim]
    options = {"options": PCA, "batch_size": 4}
    repair(
        folder, [victim], lambda: write_features(folder, source(HIGH), Camera(), teacher.of(HIGH), **options)
    )
    assert contents(tmp_path / "c") == before
    assert teacher.asked == {HIGH}


# ---- the manifest ------------------------------------------------------------------------------------------


def test_no_byte_of_a_manifest_changes_unnoticed(both, tmp_path):
    shutil.copytree(both, tmp_path / "c")
    path, of = layer_folder(tmp_path / "c", LOW) / "manifest.json", FeatureStore(both, layer=LOW)
    whole, index = path.read_bytes(), torch.tensor([0, FRAMES - 1])
    tokens, refused = of.read(index).tokens_BVHWC, 0
    for at in range(len(whole)):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        try:
            store = FeatureStore(tmp_path / "c", layer=LOW)
        except CacheError:
            refused += 1
        else:  # it says the same in other letters
            assert json.loads(path.read_text()) == json.loads(whole), at
            assert torch.equal(store.read(index).tokens_BVHWC, tokens)
    assert refused > 0.95 * len(whole), (refused, len(whole))


def test_manifests_of_earlier_versions_have_no_checksum_and_are_read(both, tmp_path):
    shutil.copytree(both, tmp_path / "c")
    path = layer_folder(tmp_path / "c", LOW) / "manifest.json"
    saved = json.loads(path.read_text())
    assert len(saved.pop("checksum")) == 64
    path.write_text(json.dumps(saved, indent=1))
    assert torch.equal(tokens_of(tmp_path / "c", LOW), tokens_of(both, LOW))
    path.write_text(json.dumps(saved | {"shard_framez": 4}))
    with pytest.raises(CacheError, match=r"manifest\.json is damaged: no manifest has shard_framez"):
        FeatureStore(tmp_path / "c", layer=LOW)
