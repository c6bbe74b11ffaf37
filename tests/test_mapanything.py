"""MapAnything: equality with the reference tensors, strict loading, and the laws its features obey."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from reference import reference
from safetensors import safe_open
from safetensors.torch import save_file
from small_teachers import SMALL_MAPANYTHING, mapanything_file, small_mapanything
from teacher_laws import assert_one_pass_is_several, images
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import WeightsError, load_teacher
from spatial_forcing.teachers.described import METADATA_KEY
from spatial_forcing.teachers.mapanything import MapAnything, MapAnythingConfig
from spatial_forcing.teachers.mapanything_teacher import KNOWN_MODULES, load_mapanything

FILE = "mapanything/mapanything_mini.safetensors"
OURS = {
    "keep_first_n_layers": "encoder_depth",
    "info_depth": "depth",
    "info_heads": "num_heads",
    "info_indices": "read_layers",
    "feature_dim": "head_features",
    "layer_dims": "head_channels",
}
# Of the largest value of each tensor; measured: 5.2e-6 for the rays, which are normalised, 1.5e-6 for others.
NEAR = 2e-5


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    with safe_open(reference(FILE), "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.fixture(scope="module")
def model(tensors, tmp_path_factory) -> MapAnything:
    """Loaded from a file as the release has it."""
    with safe_open(reference(FILE), "pt") as file:
        said = json.loads(file.metadata()["cfg"])
    del said["encoder_depth"]  # that many were built, fewer are used
    config = {OURS.get(name, name): value for name, value in said.items()}
    sizes = MapAnythingConfig(**{k: v for k, v in config.items() if k in asdict(SMALL_MAPANYTHING)})
    path, start = tmp_path_factory.mktemp("mapanything") / "model.safetensors", "weights."
    save_file({k.removeprefix(start): v for k, v in tensors.items() if k.startswith(start)}, path)
    return load_mapanything(path, sizes).eval()


@pytest.fixture(scope="module")
def nano() -> MapAnything:
    return small_mapanything()


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert_close(found, expected, rtol=0, atol=NEAR * expected.abs().max().item())


# ---- reference ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_trunk_equals_the_reference(model, tensors):
    x, last = tensors["input.images_unit"], model.config.depth - 1
    patches_BVPC, cls_BV1C = model.encoder["model"](x)
    close(patches_BVPC, tensors["output.encoder_patch"])
    close(cls_BV1C, tensors["output.encoder_cls"])
    shared = model.shared(x, (*model.config.read_layers, last))
    close(shared.fused_BVPC, tensors["output.fused"])
    close(shared.scale_B1C, tensors["output.info_final_scale"])
    for i, name in (*((i, str(i)) for i in model.config.read_layers), (last, "final")):
        close(shared.layers[i], tensors[f"output.info_{name}"])
        close(model.shared(x, (i,)).scale_B1C, tensors[f"output.info_{name}_scale"])


@torch.no_grad()
def test_the_heads_equal_the_reference(model, tensors):
    found = model(tensors["input.images_unit"])
    views = found.ray_BVHW3.shape[1]
    for value, name in (
        (found.ray_BVHW3, "ray_directions"),
        (found.distance_BVHW[..., None], "depth_along_ray"),
        (found.points_BVHW3, "pts3d_cam"),
        (found.depth_confidence_BVHW, "conf"),
        (found.valid_BVHW.logit(), "non_ambiguous_mask_logits"),
        (found.scale_B[:, None, None].expand(-1, views, -1), "metric_scaling_factor"),
    ):
        close(value, tensors[f"output.{name}"])
    assert torch.equal(found.depth_BVHW, found.points_BVHW3[..., 2])


def test_the_full_model_has_the_names_and_shapes_of_the_released_checkpoint():
    released = json.loads(reference("mapanything/mapanything_state_dict.json").read_text())
    with torch.device("meta"):
        model = MapAnything()
    built = ("dense_head.", "scale_head.")
    unread = tuple(f"{name}." for name in KNOWN_MODULES if f"{name}." not in built)
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, shape in released.items() if not name.startswith(unread)}


# ---- laws --------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_views_after_the_first_are_exchangeable_and_the_first_is_not(nano):
    x = images(views=3, height=56, width=56)
    (tokens,) = nano.shared(x).layers.values()
    (swapped,) = nano.shared(x[:, [0, 2, 1]]).layers.values()
    assert_close(swapped, tokens[:, [0, 2, 1]], rtol=0, atol=1e-5)
    (turned,) = nano.shared(x[:, [1, 0, 2]]).layers.values()
    assert (turned - tokens[:, [1, 0, 2]]).abs().max() > 1e-3


@torch.no_grad()
def test_deeper_blocks_are_not_computed(nano):
    ran = []
    blocks = nano.info_sharing.self_attention_blocks
    hooks = [block.register_forward_hook(lambda m, *_: ran.append(m)) for block in blocks]
    nano.shared(images(height=56, width=56), (1,))
    for hook in hooks:
        hook.remove()
    assert ran == list(blocks[:2])


@torch.no_grad()
def test_distances_are_proportional_to_the_scale(nano):
    x = images(height=56, width=56)
    before = nano(x)
    bias = nano.scale_head.output_proj.bias
    bias.data += torch.log(torch.tensor(3.0))
    after = nano(x)
    bias.data -= torch.log(torch.tensor(3.0))
    assert_close(after.points_BVHW3, 3 * before.points_BVHW3)
    assert_close(after.ray_BVHW3, before.ray_BVHW3)
    assert_close(before.ray_BVHW3.norm(dim=-1), torch.ones_like(before.distance_BVHW))


@torch.no_grad()
@pytest.mark.parametrize(("height", "width"), [(42, 70), (56, 56), (14, 98)])
def test_grids_with_odd_sides_have_an_output_for_every_pixel(nano, height, width):
    found = nano(images(height=height, width=width))
    assert found.depth_BVHW.shape == (2, 2, height, width)
    assert found.depth_BVHW.isfinite().all()


# ---- as a teacher ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return mapanything_file(tmp_path_factory.mktemp("mapanything"))


def test_features_are_the_normed_tokens(nano, file):
    x = images(height=56, width=56)
    teacher = load_teacher(file)
    assert (teacher.licence, teacher.width, teacher.resolution, teacher.layers) == ("MIT", 32, (56, 56), 4)
    (expected,) = nano.shared(x).layers.values()
    assert torch.equal(teacher(x).tokens_BVHWC.flatten(2, 3), expected)
    names = {name.partition(".")[0] for name, _ in teacher.model.named_parameters()}
    assert not names & {"dense_head", "scale_head"}


def test_one_pass_is_several(file):
    assert_one_pass_is_several(
        load_teacher(file), lambda layer: load_teacher(file, layer=layer), images(height=56, width=56)
    )


def test_weights_of_another_model_are_refused(file, tmp_path):
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_teacher("mapanything", weights=file)
    with safe_open(file, "pt") as saved:
        weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    about = {METADATA_KEY: json.dumps({"architecture": "pi3", "config": {}})}
    save_file(weights, tmp_path / "other.safetensors", about)
    with pytest.raises(WeightsError, match=r"architecture 'pi3'.*Known: vggt, da3, mapanything"):
        load_teacher(tmp_path / "other.safetensors")
    del weights["scale_token"]
    save_file(weights, tmp_path / "cut.safetensors")
    with pytest.raises(WeightsError, match="1 missing: scale_token"):
        load_mapanything(tmp_path / "cut.safetensors", SMALL_MAPANYTHING)


def test_unknown_modules_are_refused():
    with pytest.raises(UnknownNameError, match="MapAnything module 'pose_head'"):
        MapAnything(SMALL_MAPANYTHING, modules=("pose_head",))


def test_its_depth_is_a_source_for_the_probe_in_metres(nano, file):
    from spatial_forcing.probe.pseudo import pseudo

    x = images(views=2, height=56, width=56)
    depths = pseudo(str(file))
    assert depths.unit == "m"
    left, right = depths.of({"left": x[:, 0], "right": x[:, 1]}, ["left", "right"])
    expected_BVHW = nano(x).depth_BVHW
    assert_close(left, expected_BVHW[:, 0])
    assert_close(right, expected_BVHW[:, 1])
