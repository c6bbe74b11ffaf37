"""Depth Anything 3: equality with the reference tensors, strict loading, and the laws its features obey."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from reference import reference
from safetensors import safe_open
from safetensors.torch import save_file
from small_teachers import SMALL_DA3, da3_file, small_da3
from teacher_laws import assert_one_pass_is_several, images
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers import RECORDS, WeightsError, load_teacher
from spatial_forcing.teachers.da3 import DA3, MODULES, REFERENCE_VIEWS, DA3Config
from spatial_forcing.teachers.da3_heads import encoded, intrinsics, inverse, quaternion, rotation
from spatial_forcing.teachers.da3_teacher import BASE, PREFIX, UNREAD, load_da3

FILE = {"square": "da3/da3_mini_square.safetensors", "rect": "da3/da3_mini_rect.safetensors"}
OURS = {
    "rope_freq": "rope_base",
    "head_out_channels": "head_channels",
    "cam_enc_trunk_depth": "camera_depth",
    "cam_enc_num_heads": "camera_heads",
    "patch_size": "patch",
}
# Of the largest value of each tensor; measured: 1.1e-6.
NEAR = 1e-5


class Case:
    """A miniature, its weights loaded, and what the public code gave for it."""

    def __init__(self, kind: str):
        self.path = reference(FILE[kind])
        with safe_open(self.path, "pt") as file:
            self.tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            said = file.metadata()
        config = {OURS.get(name, name): value for name, value in json.loads(said["cfg"]).items()}
        self.config = DA3Config(**{k: v for k, v in config.items() if k in asdict(DA3Config())})
        self.runs = {("" if p == "(none)" else p): run for p, run in json.loads(said["runs"]).items()}

    def weights(self) -> dict[str, torch.Tensor]:
        """As the released files name them."""
        start = "weights."
        return {k.removeprefix(start): v for k, v in self.tensors.items() if k.startswith(start)}

    def check(self, name: str, found: torch.Tensor) -> int:
        """Compares with an output, if the run has it; returns how many were compared."""
        expected = self.tensors.get(f"output.{name}")
        if expected is None:
            return 0
        assert found.shape == expected.shape, name
        assert_close(found, expected, rtol=0, atol=NEAR * expected.abs().max().item())
        return 1


@pytest.fixture(scope="module", params=FILE)
def case(request) -> Case:
    return Case(request.param)


@pytest.fixture(scope="module")
def model(case, tmp_path_factory) -> DA3:
    path = tmp_path_factory.mktemp("da3") / "model.safetensors"
    save_file(case.weights(), path)
    return load_da3(path, case.config).eval()


@pytest.fixture(scope="module")
def nano() -> DA3:
    return small_da3()


# ---- reference ---------------------------------------------------------------------------------------------


@torch.no_grad()
def test_every_run_equals_the_reference(case, model):
    """Features, camera tokens, depth, rays, cameras; every choice of a reference view, and known cameras."""
    compared = 0
    for prefix, run in case.runs.items():
        x = case.tensors[f"input.{run['input']}_unit"]
        known, camera_BVE = {}, None
        if run["posed"]:
            cameras = [case.tensors[f"input.{name}"] for name in ("extrinsics", "intrinsics")]
            known = dict(zip(("extrinsics_BV44", "intrinsics_BV33"), cameras, strict=True))
            camera_BVE = model.cam_enc(*cameras, x.shape[-2:])
            compared += case.check(f"{prefix}cam_enc_token", camera_BVE)
        layers = model.features(x, case.config.out_layers, camera_BVE=camera_BVE, reference=run["strategy"])
        for i, tokens in zip(case.config.out_layers, layers, strict=True):
            compared += case.check(f"{prefix}feat_{i}", model.features.features(tokens))
            compared += case.check(f"{prefix}cam_{i}", torch.cat([of[:, :, 0] for of in tokens], dim=-1))
        found = model(x, reference=run["strategy"], **known)
        assert found.cameras is not None
        for name, value in (
            ("depth", found.depth_BVHW),
            ("depth_conf", found.depth_confidence_BVHW),
            ("ray", found.ray_BVhw6),
            ("ray_conf", found.ray_confidence_BVhw),
            ("pose_enc", found.cameras.pose_BV9),
            ("extrinsics", found.cameras.extrinsics_BV34),
            ("intrinsics", found.cameras.intrinsics_BV33),
        ):
            compared += case.check(f"{prefix}{name}", value)
    outputs = {name for name in case.tensors if name.startswith("output.")}
    assert compared == len({n for n in outputs if "aux_" not in n and "ref_index" not in n})


@torch.no_grad()
def test_every_block_equals_the_reference(case, model):
    """The stream after each block, normed; there the views are in the order in which the block saw them."""
    x = case.tensors["input.images_unit"]
    order_BV = torch.arange(x.shape[1]).expand(len(x), -1)
    if "output.ref_index" in case.tensors:
        reference_B = case.tensors["output.ref_index"][:, None]
        order_BV = (order_BV + x.shape[1] * (order_BV != reference_B)).argsort(1)
    for i, tokens in enumerate(model.features(x, range(case.config.depth))):
        seen = tokens.tokens_BVNE
        if i >= case.config.alt_start - 1:
            seen = seen.take_along_dim(order_BV[..., None, None], dim=1)
        grid = tuple(side // case.config.patch for side in x.shape[-2:])
        assert case.check(f"aux_{i}", model.features.norm(seen)[:, :, 1:].unflatten(2, grid))


@pytest.mark.parametrize(("name", "config"), [("small", DA3Config()), ("base", BASE)])
def test_full_models_have_the_names_and_shapes_of_the_released_checkpoints(name, config):
    released = json.loads(reference(f"da3/da3_{name}_state_dict.json").read_text())
    with torch.device("meta"):
        model = DA3(config)
    ours = {f"{PREFIX}{name}": list(tensor.shape) for name, tensor in model.state_dict().items()}
    unread = tuple(f"{PREFIX}{name}" for name in UNREAD)
    assert ours == {name: shape for name, shape in released.items() if not name.startswith(unread)}


def test_the_records_have_the_sizes_of_the_packaged_configurations():
    packaged = json.loads(reference("da3/da3_configs.json").read_text())
    for name, said in packaged.items():
        config = RECORDS[name].config
        net, head = said["net"], said["head"]
        assert (config.alt_start, config.qknorm_start, config.rope_start) == (
            net["alt_start"],
            net["qknorm_start"],
            net["rope_start"],
        )
        assert list(config.out_layers) == net["out_layers"]
        assert (2 * config.embed_dim, config.head_features) == (head["dim_in"], head["features"])
        assert list(config.head_channels) == head["out_channels"]


# ---- laws --------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("views", [3, 4])
def test_with_three_views_or_more_their_order_does_not_matter(nano, views):
    x = images(views=views, height=56, width=56)
    order = torch.randperm(views, generator=torch.Generator().manual_seed(2))
    (tokens,), (other,) = nano.features(x), nano.features(x[:, order])
    features, moved = nano.features.features(tokens), nano.features.features(other)
    assert_close(moved, features[:, order], rtol=0, atol=1e-5)


@torch.no_grad()
def test_of_two_views_the_first_is_the_reference(nano):
    x = images(height=56, width=56)
    (tokens,), (other,) = nano.features(x), nano.features(x.flip(1))
    difference = nano.features.features(tokens) - nano.features.features(other).flip(1)
    assert difference.abs().max() > 1e-3


@torch.no_grad()
def test_views_attend_to_each_other_from_the_first_odd_block_after_the_start(nano):
    x = images(height=56, width=56)
    changed = x.clone()
    changed[:, 1] = changed[:, 1].flip(-1)
    for i, (a, b) in enumerate(
        zip(nano.features(x, range(6)), nano.features(changed, range(6)), strict=True)
    ):
        same = torch.equal(a.tokens_BVNE[:, 0], b.tokens_BVNE[:, 0])
        assert same == (i < 3)  # alt_start is 2, so 3 is the first odd block from there on


@torch.no_grad()
def test_deeper_blocks_are_not_computed(nano):
    ran = []
    hooks = [b.register_forward_hook(lambda m, *_: ran.append(m)) for b in nano.features.blocks]
    nano.features(images(height=56, width=56), (1,))
    for hook in hooks:
        hook.remove()
    assert ran == list(nano.features.blocks[:2])


def test_cameras_survive_their_encoding():
    """Through the encoding and back, for rotations whose quaternions have every largest component."""
    generator = torch.Generator().manual_seed(0)
    quaternions_4 = torch.nn.functional.normalize(torch.randn(200, 1, 4, generator=generator), dim=-1)
    quaternions_4 = torch.where(quaternions_4[..., 3:] < 0, -quaternions_4, quaternions_4)
    assert_close(quaternion(rotation(quaternions_4)), quaternions_4, rtol=0, atol=1e-5)
    extrinsics_BV44 = torch.eye(4).repeat(200, 1, 1, 1)
    extrinsics_BV44[..., :3, :3] = rotation(quaternions_4)
    extrinsics_BV44[..., :3, 3] = torch.randn(200, 1, 3, generator=generator)
    known_BV33 = intrinsics(torch.rand(200, 1, 2, generator=generator) + 0.3, (56, 84))
    pose_BV9 = encoded(extrinsics_BV44, known_BV33, (56, 84))
    assert_close(inverse(pose_BV9), extrinsics_BV44[..., :3, :], rtol=0, atol=1e-5)
    assert_close(intrinsics(pose_BV9[..., 7:], (56, 84)), known_BV33, rtol=1e-5, atol=1e-4)


# ---- as a teacher ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    return da3_file(tmp_path_factory.mktemp("da3"))


def test_features_are_what_the_heads_read(nano, file):
    x = images(height=56, width=56)
    teacher = load_teacher(file)
    assert (teacher.licence, teacher.width, teacher.resolution, teacher.layers) == ("MIT", 64, (56, 56), 6)
    (tokens,) = nano.features(x)
    assert torch.equal(teacher(x).tokens_BVHWC.flatten(2, 3), nano.features.features(tokens))


def test_one_pass_is_several(file):
    assert_one_pass_is_several(
        load_teacher(file), lambda layer: load_teacher(file, layer=layer), images(height=56, width=56)
    )


def test_heads_do_not_change_the_fingerprint(nano, file, tmp_path):
    with safe_open(file, "pt") as saved:
        about = saved.metadata()
        weights = {name: saved.get_tensor(name) for name in saved.keys()}  # noqa: SIM118
    other = tmp_path / "other.safetensors"
    save_file({k: v + 1 if "head." in k else v for k, v in weights.items()}, other, about)
    assert load_teacher(other).fingerprint == load_teacher(file).fingerprint
    save_file({k: v + 1 if "blocks.5." in k else v for k, v in weights.items()}, other, about)
    assert load_teacher(other).fingerprint != load_teacher(file).fingerprint


def test_weights_of_another_size_or_model_are_refused(nano, file, tmp_path):
    with pytest.raises(WeightsError, match="do not fit the model"):
        load_teacher("da3-small", weights=file)
    with pytest.raises(WeightsError, match="those of another teacher"):
        load_teacher("vggt-1b", weights=file)
    damaged = {f"{PREFIX}{name}": tensor for name, tensor in nano.state_dict().items()}
    damaged["model.backbone.pretrained.register_tokens"] = torch.zeros(1, 4, 32)
    save_file(damaged, tmp_path / "fork.safetensors")
    with pytest.raises(WeightsError, match=r"1 not known: model\.backbone\.pretrained\.register_tokens"):
        load_da3(tmp_path / "fork.safetensors", SMALL_DA3)


def test_a_part_is_read_alone(file):
    for name in MODULES:
        built = load_da3(file, SMALL_DA3, modules=(name,))
        assert {n.partition(".")[0] for n in built.state_dict()} == {"backbone", name}


def test_unknown_names_are_refused(nano):
    with pytest.raises(UnknownNameError, match="DA3 module 'heads'"):
        DA3(SMALL_DA3, modules=("heads",))
    with pytest.raises(UnknownNameError, match=r"reference view 'last'.*" + REFERENCE_VIEWS[0]):
        nano.features(images(views=3, height=56, width=56), reference="last")


def test_its_depth_is_a_source_for_the_probe(nano, file):
    from spatial_forcing.probe.pseudo import in_medians, pseudo

    x = images(views=2, height=56, width=56)
    batch = {"left": x[:, 0], "right": x[:, 1]}
    left, right = pseudo(str(file)).of(batch, ["left", "right"])
    expected_BVHW = nano(x).depth_BVHW
    assert_close(left, in_medians(expected_BVHW[:, 0]))
    assert_close(right, in_medians(expected_BVHW[:, 1]))
