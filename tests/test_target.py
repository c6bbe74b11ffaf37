"""What can be a target, what it says of itself, and that it is asked once."""

from types import SimpleNamespace

import pytest
import torch
from small_alignment import CHANNELS, ConvTeacher, TwoLayers, small_store

from spatial_forcing import Target, load_teacher
from spatial_forcing.cache.store import CacheError, FeatureStore
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.target import ask, target_of


@pytest.fixture
def store(tmp_path) -> FeatureStore:
    return small_store(tmp_path / "cache")


def test_a_store_is_a_target(store):
    assert isinstance(store, Target)
    assert target_of(store) is store
    assert (store.name, store.width, store.layer, store.licence) == (
        "untrained-tiny",
        CHANNELS,
        3,
        "Apache-2.0",
    )
    assert store.image_sizes == [(28, 28), (28, 42)]
    frames = torch.tensor([3, 0])
    expected = store.read(frames)
    for layers in ((3,), (-1,), (3, -1)):
        found = store.layers_of(frames, layers)
        assert found.keys() == set(layers)
        assert all(torch.equal(one.tokens_BVHWC, expected.tokens_BVHWC) for one in found.values())
    assert torch.equal(store(frames).tokens_BVHWC, expected.tokens_BVHWC)
    with pytest.raises(CacheError, match="was written with layer 3, and layer 2 is asked for"):
        store.layers_of(frames, (2,))


def test_a_teacher_of_ours_says_everything_of_a_target():
    teacher = load_teacher("untrained-tiny")
    target = target_of(teacher)
    said = (target.name, target.width, target.layer, target.fingerprint, target.licence)
    assert said == ("untrained-tiny", teacher.width, 3, teacher.fingerprint, "Apache-2.0")
    assert (target.hidden, target.stats, target.image_sizes) == (None, None, None)
    assert target is teacher
    other = load_teacher("untrained-tiny", layer=1)
    assert target.fingerprint_of(1) == other.fingerprint
    images_BV3HW = torch.rand(1, 2, 3, 28, 28)
    found = ask(target, images_BV3HW, [None, 1])
    assert torch.equal(found[1].tokens_BVHWC, other(images_BV3HW).tokens_BVHWC)
    assert torch.equal(found[None].tokens_BVHWC, teacher(images_BV3HW).tokens_BVHWC)


def test_anything_with_a_width_that_maps_images_to_features_is_made_a_target():
    model = ConvTeacher()
    target = target_of(model)
    assert isinstance(target, Target)
    assert (target.width, target.name, target.layer, target.stats) == (CHANNELS, "ConvTeacher", None, None)
    images_BV3HW = torch.rand(2, 2, 3, 28, 28)
    assert torch.equal(target(images_BV3HW).tokens_BVHWC, model(images_BV3HW).tokens_BVHWC)
    with pytest.raises(SpatialForcingError, match=r"Layers 0, 1 of the target ConvTeacher.*one layer only"):
        target.layers_of(images_BV3HW, (0, 1))


@pytest.mark.parametrize(
    ("thing", "says"),
    [
        (None, "something that has a width; got None"),
        ("vggt-1b", r"from load_teacher\(name\).*got 'vggt-1b'"),
        (SimpleNamespace(width="wide"), "something that has a width"),
    ],
)
def test_things_that_are_no_target(thing, says):
    with pytest.raises(SpatialForcingError, match=says):
        target_of(thing)


def test_a_target_that_cannot_look_at_images_says_so_when_it_is_asked():
    only_width = target_of(SimpleNamespace(width=8, name="stored elsewhere"))
    with pytest.raises(SpatialForcingError, match=r"stored elsewhere does not map images to Features"):
        only_width(torch.rand(1, 1, 3, 28, 28))
    other = type("Tokens", (), {"width": 8, "__call__": lambda self, images: images})()
    with pytest.raises(
        SpatialForcingError, match=r"Tokens must map images_BV3HW to .*Features; it gave Tensor"
    ):
        target_of(other)(torch.rand(1, 1, 3, 28, 28))


def test_layers_are_asked_for_in_one_pass():
    teacher, images_BV3HW = TwoLayers(), torch.rand(2, 2, 3, 28, 28)
    found = ask(target_of(teacher), images_BV3HW, [None, 0, None, 1])
    assert teacher.asked == [(0, 1)]
    assert torch.equal(found[None].tokens_BVHWC, found[1].tokens_BVHWC)
    assert torch.equal(found[1].tokens_BVHWC, found[0].tokens_BVHWC.flip(-1))
    # Its own layer needs no choice of layers.
    assert ask(target_of(ConvTeacher()), images_BV3HW, [None]).keys() == {None}
    with pytest.raises(
        SpatialForcingError, match=r"names no layer, and others name 1.*name the layer in every"
    ):
        ask(target_of(TwoLayers(layer=None)), images_BV3HW, [None, 1])
