"""VGGT: equality with the reference tensors, strict loading, and the laws its features obey."""

import json

import pytest
import torch
from reference import reference
from safetensors import safe_open
from safetensors.torch import save_file
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.teachers.checkpoint import Checkpoint, WeightsError
from spatial_forcing.teachers.vggt import MODULES, VGGT, VGGTConfig
from spatial_forcing.teachers.vggt_teacher import TINY, load_vggt
from spatial_forcing.uv import uv_position_embedding

NANO = VGGTConfig(
    img_size=56,
    embed_dim=32,
    depth=3,
    vit_depth=1,
    num_heads=2,
    camera_depth=1,
    dpt_layers=(0, 0, 1, 2),
    dpt_features=8,
    dpt_channels=(4, 4, 8, 8),
    dpt_hidden=4,
)


@pytest.fixture(scope="module", params=["square", "rect"])
def case(request) -> tuple[VGGT, dict[str, torch.Tensor]]:
    path = reference(f"vggt/vggt_tiny_{request.param}.safetensors")
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        config = VGGTConfig(**json.loads(file.metadata()["cfg"]))
    model = VGGT(config).eval()
    weights = "weights."
    model.load_state_dict({k.removeprefix(weights): v for k, v in tensors.items() if k.startswith(weights)})
    return model, tensors


@pytest.fixture(scope="module")
def nano() -> VGGT:
    """A small model whose residual branches matter: layer scales are one."""
    torch.manual_seed(0)
    model = VGGT(NANO).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
    return model


def images(views: int = 2, height: int = 56, width: int = 56, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(1))


# ----------------------------------------------------------------------------------------------- reference


@torch.no_grad()
def test_every_layer_equals_the_reference(case):
    model, tensors = case
    layers = model.aggregator(tensors["input.images"], range(model.config.depth))
    for i, tokens_BVNC in enumerate(layers):
        assert_close(tokens_BVNC, tensors[f"output.layer_{i}"], rtol=0, atol=1e-5)


@torch.no_grad()
def test_every_head_equals_the_reference(case):
    model, tensors = case
    found = model(tensors["input.images"])
    for tensor, name in (
        (found.pose_IBV9[-1], "pose_enc"),
        (found.depth_BVHW[..., None], "depth"),
        (found.depth_confidence_BVHW, "depth_conf"),
        (found.points_BVHW3, "points"),
        (found.points_confidence_BVHW, "points_conf"),
    ):
        assert_close(tensor, tensors[f"output.{name}"], rtol=0, atol=1e-5)


def test_full_model_has_the_names_and_shapes_of_the_released_checkpoint():
    released = json.loads(reference("vggt/vggt_1b_state_dict.json").read_text())
    with torch.device("meta"):
        model = VGGT(VGGTConfig())
    ours = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    assert ours == {name: shape for name, shape in released.items() if not name.startswith("track_head.")}


@pytest.mark.parametrize("name", ["sf_objective", "sf_objective_37to16"])
def test_uv_position_embedding_gives_the_published_target(name):
    with safe_open(reference(f"spatial_forcing/{name}.safetensors"), "pt") as file:
        tokens_BVPC, target = file.get_tensor("input.teacher_tokens"), file.get_tensor("output.target")
        rows, cols = map(int, file.metadata()["teacher_grid"].split("x"))
        size = tuple(map(int, file.metadata()["student_grid"].split("x")))
    x = tokens_BVPC.flatten(0, 1).unflatten(1, (rows, cols))
    x = x + 0.1 * uv_position_embedding(rows, cols, x.shape[-1])
    x = torch.nn.functional.interpolate(x.movedim(-1, 1), size=size, mode="bilinear", align_corners=True)
    found = x.movedim(1, -1).unflatten(0, tokens_BVPC.shape[:2]).flatten(1, 3)
    assert_close(found, target, rtol=0, atol=1e-6)


# ---------------------------------------------------------------------------------------------------- laws


@torch.no_grad()
def test_one_layer_equals_the_same_layer_among_all(nano):
    every = nano.aggregator(images(), range(NANO.depth))
    for i in range(NANO.depth):
        (alone,) = nano.aggregator(images(), (i,))
        (from_end,) = nano.aggregator(images(), (i - NANO.depth,))
        assert torch.equal(alone, every[i])
        assert torch.equal(from_end, every[i])


@torch.no_grad()
def test_deeper_layers_are_not_computed(nano):
    ran = []
    hooks = [b.register_forward_hook(lambda m, *_: ran.append(m)) for b in nano.aggregator.global_blocks]
    nano.aggregator(images(), (0,))
    for hook in hooks:
        hook.remove()
    assert ran == [nano.aggregator.global_blocks[0]]


@torch.no_grad()
def test_layers_come_in_the_order_asked_for(nano):
    first, last, again = nano.aggregator(images(), (0, -1, 0))
    assert torch.equal(first, again)
    assert not torch.equal(first, last)


@torch.no_grad()
def test_views_after_the_first_are_exchangeable(nano):
    x = images(views=3)
    (tokens,) = nano.aggregator(x)
    (swapped,) = nano.aggregator(x[:, [0, 2, 1]])
    assert_close(swapped, tokens[:, [0, 2, 1]], rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_first_view_is_special_and_views_see_each_other(nano):
    x = images(views=2)
    (tokens,) = nano.aggregator(x)
    (swapped,) = nano.aggregator(x.flip(1))
    assert (swapped.flip(1) - tokens).abs().max() > 1e-3
    (alone,) = nano.aggregator(x[:, :1])
    assert (alone - tokens[:, :1]).abs().max() > 1e-3


@torch.no_grad()
def test_scenes_of_a_batch_are_independent(nano):
    x = images(batch=3)
    (together,) = nano.aggregator(x)
    assert_close(together[1:2], nano.aggregator(x[1:2])[0], rtol=0, atol=1e-5)


@torch.no_grad()
def test_masked_patches_are_not_seen(nano):
    x = images()
    mask_BVP = torch.zeros(2, 2, 16, dtype=torch.bool)
    mask_BVP[:, :, :4] = True  # the first row of patches
    (tokens,) = nano.aggregator(x, (-1,), mask_BVP)
    changed = x.clone()
    changed[..., :14, :] = 0.0
    assert torch.equal(nano.aggregator(changed, (-1,), mask_BVP)[0], tokens)
    assert not torch.equal(nano.aggregator(changed)[0], nano.aggregator(x)[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_stays_close_and_keeps_heads_in_float32(nano, dtype):
    model = VGGT(NANO)
    model.load_state_dict(nano.state_dict())
    model.eval().set_dtype(dtype)
    assert model.aggregator.frame_blocks[0].attn.qkv.weight.dtype == dtype
    assert model.aggregator.frame_blocks[0].norm1.weight.dtype == torch.float32
    assert {p.dtype for p in model.depth_head.parameters()} == {torch.float32}
    (exact,), (half,) = nano.aggregator(images()), model.aggregator(images())
    assert half.dtype == torch.float32
    similarity = torch.nn.functional.cosine_similarity(half, exact, dim=-1)
    assert similarity.min() > (0.9999 if dtype == torch.float16 else 0.995)
    assert model(images()).depth_BVHW.isfinite().all()


def test_every_parameter_of_the_aggregator_learns(nano):
    model = VGGT(NANO)
    model.load_state_dict(nano.state_dict())
    (tokens,) = model.aggregator(images(), (-1,), torch.rand(2, 2, 16) < 0.5)
    (tokens * torch.randn_like(tokens)).sum().backward()
    still = [n for n, p in model.aggregator.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


# ------------------------------------------------------------------------------------------------- loading


def test_weights_survive_a_round_trip(nano, tmp_path):
    save_file(nano.state_dict(), tmp_path / "model.safetensors")
    torch.save(nano.state_dict(), tmp_path / "model.pt")
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "model.pt"):
        loaded = load_vggt(source, NANO)
        for name, tensor in nano.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], tensor)


def test_known_modules_that_are_not_built_are_ignored(nano, tmp_path):
    weights = {**nano.state_dict(), "track_head.fmap_norm.weight": torch.ones(3)}
    save_file(weights, tmp_path / "w.safetensors")
    model = load_vggt(tmp_path / "w.safetensors", NANO, modules=("aggregator",))
    assert {name.split(".")[0] for name in model.state_dict()} == {"aggregator"}
    assert {name.split(".")[0] for name in nano.state_dict()} == set(MODULES)


def test_loading_reads_only_what_it_needs(nano, tmp_path, monkeypatch):
    save_file(nano.state_dict(), tmp_path / "w.safetensors")
    read = []
    original = Checkpoint.read
    monkeypatch.setattr(
        Checkpoint, "read", lambda self, names: original(self, read.append(list(names)) or names)
    )
    load_vggt(tmp_path / "w.safetensors", NANO, modules=("aggregator",))
    assert all(name.startswith("aggregator.") for name in read[0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda w: w.pop("aggregator.camera_token"), ["1 missing", "aggregator.camera_token"]),
        (lambda w: w.update({"aggregator.extra": torch.ones(1)}), ["1 not known", "aggregator.extra"]),
        (
            lambda w: w.update({"agregator.camera_token": torch.ones(1)}),
            ["1 not known", "agregator.camera_token"],
        ),
        (
            lambda w: w.update({"aggregator.camera_token": torch.ones(1, 2, 1, 5)}),
            ["1 of another shape", "aggregator.camera_token", "(1, 2, 1, 32)", "(1, 2, 1, 5)"],
        ),
        (
            lambda w: [w.pop(name) for name in list(w) if "frame_blocks.0" in name],
            ["18 missing", "aggregator.frame_blocks.0", "and 14 more"],
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(nano, tmp_path, spoil, said):
    weights = dict(nano.state_dict())
    spoil(weights)
    save_file(weights, tmp_path / "w.safetensors")
    with pytest.raises(WeightsError) as error:
        load_vggt(tmp_path / "w.safetensors", NANO, modules=("aggregator",))
    for words in said:
        assert words in str(error.value)


def test_files_that_are_no_weights_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no such file"):
        load_vggt(tmp_path / "absent.safetensors", NANO)
    with pytest.raises(WeightsError, match=r"model\.safetensors or model\.pt, found nothing"):
        load_vggt(tmp_path, NANO)
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(WeightsError, match="not a readable safetensors"):
        load_vggt(tmp_path / "cut.safetensors", NANO)
    (tmp_path / "bad.pt").write_bytes(b"no pickle")
    with pytest.raises(WeightsError, match="not a PyTorch file"):
        load_vggt(tmp_path / "bad.pt", NANO)
    torch.save([torch.ones(1)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match="flat state dict"):
        load_vggt(tmp_path / "list.pt", NANO)


def test_wrong_requests_are_refused(nano):
    with pytest.raises(UnknownNameError, match="depth_head"):
        VGGT(NANO, ("aggregator", "dept_head"))
    with pytest.raises(IndexError, match="layers 0 to 2"):
        nano.aggregator(images(), (3,))
    with pytest.raises(ValueError, match="multiples of 14"):
        nano.aggregator(images(height=57))
    with pytest.raises(ValueError, match="batch, views, 3"):
        nano.aggregator(images()[0])
    with pytest.raises(ValueError, match="multiple of 4"):
        VGGTConfig(embed_dim=100)
    with pytest.raises(ValueError, match="dpt_layers"):
        VGGTConfig(depth=4)


def test_the_small_teacher_is_small():
    with torch.device("meta"):
        model = VGGT(TINY)
    assert 1e6 < sum(p.numel() for p in model.aggregator.parameters()) < 3e6
