"""Teachers: what they promise of images and features, the registry, and local weights."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from teacher_laws import assert_one_pass_is_several, images
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import spatial_forcing.teachers as teachers
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import (
    RECORDS,
    Teacher,
    TeacherInputError,
    WeightsError,
    load_teacher,
)
from spatial_forcing.teachers.base import NoSuchLayerError, digest, resize
from spatial_forcing.teachers.described import METADATA_KEY
from spatial_forcing.teachers.model import IMAGENET_MEAN, IMAGENET_STD
from spatial_forcing.teachers.vggt import VGGT, VGGTConfig


@pytest.fixture(scope="module")
def teacher() -> teachers.VGGTTeacher:
    return load_teacher("untrained-tiny")


# -------------------------------------------------------------------------------------------- the contract


@pytest.mark.parametrize("name", ["untrained-tiny", "pixels"])
def test_features_keep_the_contract(name):
    teacher = load_teacher(name)
    assert isinstance(teacher, Teacher)
    assert not teacher.training
    assert not any(p.requires_grad for p in teacher.parameters())
    tokens, valid = teacher(images(height=60, width=90).requires_grad_())
    assert tokens.shape == (2, 2, 8, 8, teacher.width)
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    assert valid.shape == tokens.shape[:4]
    assert valid.dtype == torch.bool
    assert valid.all()


def test_a_teacher_stays_in_evaluation_mode(teacher):
    model = torch.nn.ModuleList([teacher])
    model.train()
    assert not teacher.training
    assert not teacher.aggregator.training


def test_batches_are_cut_without_changing_the_features(teacher):
    whole = teacher(images(batch=5)).tokens_BVHWC
    pieces = load_teacher("untrained-tiny", batch_size=2)(images(batch=5)).tokens_BVHWC
    assert_close(pieces, whole, rtol=0, atol=1e-5)


def test_special_tokens_are_cut_off(teacher):
    (tokens_BVNC,) = teacher.aggregator(images())
    assert torch.equal(teacher(images()).tokens_BVHWC.flatten(2, 3), tokens_BVNC[:, :, 5:])


def test_images_are_resized_to_the_resolution(teacher):
    large = images(height=224, width=160)
    assert_close(teacher(large).tokens_BVHWC, teacher(resize(large, (112, 112))).tokens_BVHWC)
    wide = load_teacher("untrained-tiny", resolution=(70, 126))
    assert wide(large).tokens_BVHWC.shape[2:4] == (5, 9)


def test_resizing_keeps_means_and_ramps():
    ramp = ((torch.arange(224) + 0.5) / 224).expand(1, 1, 3, 224, 224)
    small = resize(ramp, (56, 56))
    expected = (torch.arange(56) + 0.5) / 56
    assert_close(small[0, 0, 0, 10, 2:-2], expected[2:-2], rtol=0, atol=1e-6)
    noise = images(height=224, width=224)
    assert_close(resize(noise, (56, 56)).mean(), noise.mean(), rtol=0, atol=1e-3)


def test_pixels_are_the_normalised_patches():
    x = images()
    tokens = load_teacher("pixels")(x).tokens_BVHWC
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    patch = ((x - mean) / std)[1, 0, :, 28:42, 98:112]
    assert_close(tokens[1, 0, 2, 7], patch.flatten())


def test_views_see_each_other_only_where_the_teacher_says_so():
    x = images()
    other = torch.cat([x[:, :1], x[:, 1:].flip(-1)], dim=1)
    for name in ("untrained-tiny", "pixels"):
        teacher = load_teacher(name)
        first, again = (teacher(y).tokens_BVHWC[:, 0] for y in (x, other))
        assert torch.equal(first, again) != teacher.multi_view


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (lambda x: x[0], "shape"),
        (lambda x: x[:, :0], "shape"),
        (lambda x: x.movedim(2, -1), "move the channels"),
        (lambda x: (x * 255).to(torch.uint8), "divide by 255"),
        (lambda x: x * 255, "got values from"),
        (lambda x: x - 0.5, "before any normalisation"),
        (lambda x: x.index_fill(4, torch.tensor([3]), float("nan")), "nan"),
    ],
)
def test_wrong_images_are_refused(teacher, bad, said):
    with pytest.raises(TeacherInputError, match=said):
        teacher(bad(images()))


def test_a_little_overshoot_is_no_error(teacher):
    teacher(images() * 1.0005)


# -------------------------------------------------------------------------------------------------- layers


@pytest.mark.parametrize("name", ["untrained-tiny", "pixels"])
def test_one_pass_over_several_layers_is_a_pass_for_each(name):
    def load(**options):
        return load_teacher(name, batch_size=2, **options)

    assert_one_pass_is_several(load(), load, images(batch=3, height=60, width=90))


def test_several_layers_are_one_pass(teacher):
    passes = []
    handle = teacher.aggregator.register_forward_hook(lambda *_: passes.append(1))
    teacher.layers_of(images(), (0, 2, 3, -1))
    handle.remove()
    assert passes == [1]


def test_layers_that_cannot_be_asked_for(teacher):
    with pytest.raises(NoSuchLayerError, match=r"No layer 4: untrained-tiny has layers 0 to 3"):
        teacher.layers_of(images(), (0, 4))
    with pytest.raises(NoSuchLayerError, match=r"pixels has layers 0 to 0"):
        load_teacher("pixels").layers_of(images(), (1,))
    with pytest.raises(TeacherInputError, match="at least one layer"):
        teacher.layers_of(images(), ())
    with pytest.raises(TeacherInputError, match=r"whole number.*got 'last'"):
        teacher.layers_of(images(), ("last",))
    with pytest.raises(TeacherInputError, match="shape"):
        teacher.layers_of(images()[0], (0,))


# --------------------------------------------------------------------------------------------- fingerprint


def test_fingerprint_tells_teachers_apart(teacher):
    prints = [
        teacher.fingerprint,
        load_teacher("untrained-tiny", layer=1).fingerprint,
        load_teacher("untrained-tiny", resolution=126).fingerprint,
        load_teacher("untrained-tiny", resolution=(112, 126)).fingerprint,
        load_teacher("pixels").fingerprint,
    ]
    assert len(set(prints)) == len(prints)
    assert load_teacher("untrained-tiny", layer=3).fingerprint == teacher.fingerprint
    assert load_teacher("untrained-tiny", batch_size=1).fingerprint == teacher.fingerprint


def test_fingerprint_is_stable_across_processes_and_dtypes(teacher):
    half = load_teacher("untrained-tiny", dtype=torch.float16)
    assert half.fingerprint == teacher.fingerprint
    x = images()
    similarity = cosine_similarity(half(x).tokens_BVHWC, teacher(x).tokens_BVHWC, dim=-1)
    assert similarity.min() > 0.999
    assert (
        load_teacher("pixels").fingerprint == "889301a70789058a"
    )  # no weights: depends on nothing but the code


def test_digest_depends_on_every_value_and_name():
    a, b = torch.arange(6.0).view(2, 3), torch.ones(2)
    base = digest([("a", a), ("b", b)])
    assert base == digest([("b", b), ("a", a.half())])
    assert base != digest([("a", b), ("b", a)])
    assert base != digest([("a", a.view(3, 2)), ("b", b)])
    assert base != digest([("a", a + 1e-6), ("b", b)])


# ------------------------------------------------------------------------------------------------ registry


def test_unknown_names_list_the_nearest_ones():
    with pytest.raises(UnknownNameError, match=r"Did you mean 'vggt-1b'.*The nearest: vggt-1b, "):
        load_teacher("vggt-1B")


def test_of_many_names_the_nearest_are_listed_and_the_rest_counted():
    names = [f"{letter}-name" for letter in "abcdefghijklmnopqrstuvwx"]
    assert "Available: a-name, b-name, " in str(UnknownNameError("thing", "m-nam", names[:20]))
    many = UnknownNameError("thing", "m-nam", names)
    listed = re.search(r"Did you mean 'm-name'.*The nearest: (.*), and 16 more\.$", str(many))
    assert listed, many
    assert listed[1].split(", ")[0] == "m-name"
    assert len(set(listed[1].split(", "))) == 8
    assert list(many.available) == names
    assert "Available: none." in str(UnknownNameError("thing", "x", []))


@pytest.mark.parametrize("resolution", [100, 0, (112, 100)])
def test_resolutions_off_the_patch_are_refused(resolution):
    with pytest.raises(TeacherInputError, match="multiple of the teacher's patch, 14 px"):
        load_teacher("untrained-tiny", resolution=resolution)


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(IndexError, match="layers 0 to 3"):
        load_teacher("untrained-tiny", layer=4)
    with pytest.raises(TeacherInputError, match="one layer"):
        load_teacher("pixels", layer=2)


def test_every_record_says_its_terms():
    for record in RECORDS.values():
        assert record.licence
        assert record.terms.startswith("https://")
        assert (record.repo is not None) or record.packaged or not record.takes_weights
        assert record.control == ("ontrol" in record.note)


@pytest.mark.parametrize("name", [r.name for r in RECORDS.values() if r.packaged])
def test_packaged_teachers_load(name):
    record = RECORDS[name]
    weights = Path(teachers.__file__).parent / "weights" / str(record.packaged)
    if not weights.exists():
        pytest.skip(f"{record.packaged} is not in the working tree")
    teacher = load_teacher(name)
    assert teacher.licence == "Apache-2.0"
    assert teacher.multi_view == record.multi_view
    assert weights.with_suffix(".md").exists()
    assert weights.stat().st_size < 10e6
    tokens = teacher(images()).tokens_BVHWC
    assert tokens.isfinite().all()
    assert tokens.std(dim=(0, 1, 2, 3)).min() > 0


# ------------------------------------------------------------------------------------------- local weights


@pytest.fixture(scope="module")
def nano() -> VGGT:
    torch.manual_seed(0)
    sizes = {"dpt_features": 8, "dpt_channels": (4, 4, 8, 8), "dpt_hidden": 4, "dpt_layers": (0, 0, 1, 1)}
    return VGGT(
        VGGTConfig(img_size=28, embed_dim=16, depth=2, vit_depth=1, num_heads=2, camera_depth=1, **sizes)
    )


def description(model: VGGT, **changed) -> dict[str, str]:
    config = {**model.config.__dict__, "dpt_layers": list(model.config.dpt_layers)}
    said = {"config": config, "licence": "MIT", "multi_view": True, "note": "A test.", **changed}
    return {METADATA_KEY: json.dumps(said)}


def test_a_local_file_says_what_it_is(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "mine.safetensors", description(nano))
    teacher = load_teacher(tmp_path / "mine.safetensors")
    assert (teacher.licence, teacher.width, teacher.resolution) == ("MIT", 32, (28, 28))
    (expected,) = nano.aggregator(images(height=28, width=28))
    assert torch.equal(teacher(images(height=28, width=28)).tokens_BVHWC.flatten(2, 3), expected[:, :, 5:])


def test_single_view_teachers_look_at_one_view_at_a_time(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "mine.safetensors", description(nano, multi_view=False))
    teacher = load_teacher(tmp_path / "mine.safetensors")
    x = images(height=28, width=28)
    both = teacher(x).tokens_BVHWC
    assert_close(both[:, 1:], teacher(x[:, 1:]).tokens_BVHWC, rtol=0, atol=1e-5)


def test_a_file_that_does_not_say_what_it_is_asks_for_a_name(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "mine.safetensors")
    with pytest.raises(WeightsError, match=r'load_teacher\("vggt-1b", weights='):
        load_teacher(tmp_path / "mine.safetensors")


def test_published_weights_that_do_not_fit_are_refused(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"missing: aggregator\.frame_blocks"):
        load_teacher("vggt-1b", weights=tmp_path)


PACKAGED = Path(teachers.__file__).parent / "weights"


@pytest.mark.parametrize("name", [r.name for r in RECORDS.values() if r.packaged])
def test_packaged_weights_pass_under_their_own_name_only(name):
    weights = PACKAGED / str(RECORDS[name].packaged)
    loaded = load_teacher(name, weights=weights)
    assert loaded.fingerprint == load_teacher(name).fingerprint
    for other in ("vggt-1b", *(r.name for r in RECORDS.values() if r.packaged and r.name != name)):
        said = rf"those of the teacher '{name}', not of '{other}'.*load_teacher\(\"{name}\", weights="
        with pytest.raises(WeightsError, match=said):
            load_teacher(other, weights=weights)


def test_a_file_that_says_it_is_something_else_is_refused_under_a_name(nano, tmp_path):
    path = tmp_path / "mine.safetensors"
    save_file(nano.state_dict(), path, description(nano))
    with pytest.raises(WeightsError, match=r"another teacher \('A test.'\), not of 'vggt-tiny-sim'.*mine"):
        load_teacher("vggt-tiny-sim", weights=path)


@pytest.mark.parametrize("name", ["pixels", "untrained-tiny"])
def test_weights_of_a_teacher_that_has_none_are_refused(name):
    with pytest.raises(TeacherInputError, match=f"'{name}' has no trained weights"):
        load_teacher(name, weights=PACKAGED / "vggt-tiny-sim.safetensors")
