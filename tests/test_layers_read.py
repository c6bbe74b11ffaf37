"""Caches of several layers are read: each layer by itself, damage noticed and repaired by itself."""

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from small_layers import (
    FRAMES,
    HIGH,
    LOW,
    PCA,
    TABLES,
    Camera,
    Teacher,
    alone,
    contents,
    small_shards,
    source,
    sources,
    write,
)
from torch import Tensor

from spatial_forcing.cache.claim import check_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.layers import layer_folder
from spatial_forcing.cache.layout import Source
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.cache.verify import broken_files, repair
from spatial_forcing.cache.write import write_features, write_layers


@pytest.fixture(autouse=True)
def _small_shards(monkeypatch):
    small_shards(monkeypatch)


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
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
