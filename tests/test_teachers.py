"""Teachers: what they promise of images and features, the registry, local weights, and training one."""

import importlib.util
import json
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close

import spatial_forcing.teachers as teachers
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.teachers import (
    METADATA_KEY,
    RECORDS,
    Teacher,
    TeacherInputError,
    TeacherUnavailableError,
    WeightsError,
    load_teacher,
)
from spatial_forcing.teachers.base import digest, resize
from spatial_forcing.teachers.scene_batches import Scenes, encode_pose, make_batch, read_scenes
from spatial_forcing.teachers.vggt import IMAGENET_MEAN, IMAGENET_STD, VGGT, VGGTConfig

RECIPE = Path(__file__).resolve().parents[1] / "recipes" / "vggt_tiny_sim.py"


@pytest.fixture(scope="module")
def teacher() -> teachers.VGGTTeacher:
    return load_teacher("untrained-tiny")


def images(batch: int = 2, views: int = 2, height: int = 112, width: int = 112) -> torch.Tensor:
    return torch.rand(batch, views, 3, height, width, generator=torch.Generator().manual_seed(3))


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


def test_unknown_names_list_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"'vggt-1b'.*Available: .*pixels"):
        load_teacher("vggt-1B")


@pytest.mark.parametrize("resolution", [100, 0, (112, 100)])
def test_resolutions_off_the_patch_are_refused(resolution):
    with pytest.raises(TeacherInputError, match="multiple of the teacher's patch, 14 px"):
        load_teacher("untrained-tiny", resolution=resolution)


def test_layers_that_do_not_exist_are_refused():
    with pytest.raises(IndexError, match="layers 0 to 3"):
        load_teacher("untrained-tiny", layer=4)
    with pytest.raises(TeacherInputError, match="one layer"):
        load_teacher("pixels", layer=2)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty Hub cache and no way out."""
    constants = pytest.importorskip("huggingface_hub.constants", reason="huggingface_hub is not installed")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))


def test_without_a_connection_the_error_says_how_to_give_a_file(offline):
    with pytest.raises(TeacherUnavailableError, match=r'load_teacher\("vggt-1b", weights='):
        load_teacher("vggt-1b")


def test_restricted_licences_are_said_once(offline):
    teachers._show_licence.cache_clear()
    with (
        pytest.warns(UserWarning, match=r"CC-BY-NC-4.0.*Commercial use is not allowed"),
        pytest.raises(TeacherUnavailableError),
    ):
        load_teacher("vggt-1b")
    with warnings.catch_warnings(action="error"), pytest.raises(TeacherUnavailableError):
        load_teacher("vggt-1b")


def test_every_record_says_its_terms():
    for record in RECORDS.values():
        assert record.licence
        assert record.terms.startswith("https://")
        assert (record.repo is not None) or record.packaged or record.config or record.family == "pixels"


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


@pytest.mark.parametrize("name", ["dinov2", "siglip", "dinov3"])
def test_2d_controls_equal_the_transformers_model(name, tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    size = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
    config, model_class, special = {
        "dinov2": (transformers.Dinov2Config(patch_size=14, image_size=56, **size), "Dinov2Model", 1),
        "siglip": (
            transformers.SiglipVisionConfig(patch_size=16, image_size=64, **size),
            "SiglipVisionModel",
            0,
        ),
        "dinov3": (
            transformers.DINOv3ViTConfig(patch_size=16, image_size=64, num_register_tokens=4, **size),
            "DINOv3ViTModel",
            5,
        ),
    }[name]
    torch.manual_seed(0)
    model = getattr(transformers, model_class)(config).eval()
    model.save_pretrained(tmp_path)
    teacher = load_teacher(tmp_path)
    assert (teacher.licence, teacher.multi_view, teacher.patch) == ("unknown", False, config.patch_size)
    x = images(height=config.image_size, width=config.image_size)
    mean, std = ((0.5,) * 3, (0.5,) * 3) if name == "siglip" else (IMAGENET_MEAN, IMAGENET_STD)
    normed = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        expected = model(pixel_values=normed.flatten(0, 1)).last_hidden_state[:, special:]
    found = teacher(x).tokens_BVHWC
    assert_close(found.flatten(2, 3).flatten(0, 1), expected, rtol=0, atol=1e-5)
    side = 2 * config.image_size
    assert load_teacher(tmp_path, resolution=side)(x).tokens_BVHWC.shape[2:4] == (8, 8)
    early = load_teacher(tmp_path, layer=0)
    assert early.fingerprint != teacher.fingerprint
    assert not torch.equal(early(x).tokens_BVHWC, found)


def test_incomplete_transformers_weights_are_refused(tmp_path):
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    size = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2}
    transformers.Dinov2Model(transformers.Dinov2Config(image_size=56, **size)).save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights.pop("layernorm.weight")
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"layernorm\.weight"):
        load_teacher("dinov2-base", weights=tmp_path)
    with pytest.raises(WeightsError, match=r"config\.json"):
        load_teacher("dinov2-base", weights=tmp_path / "absent")


# -------------------------------------------------------------------------------------- training a teacher


def plane_scenes(count: int, seed: int) -> dict[str, torch.Tensor]:
    """Two cameras above the plane z = 0, whose depth is known in closed form; the colour tells the place."""
    rng = np.random.default_rng(seed)
    size = 112
    K = np.array([[100, 0, size / 2], [0, 100, size / 2], [0, 0, 1]], dtype=np.float32)
    v, u = np.meshgrid(np.arange(size) + 0.5, np.arange(size) + 0.5, indexing="ij")
    rays_HW3 = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(K).T
    rgb, depth, extrinsics = [], [], []
    for _ in range(2 * count):
        heading, height = rng.uniform(-0.5, 0.5), rng.uniform(0.6, 1.4)
        c, s = np.cos(heading), np.sin(heading)
        R = np.array([[c, s, 0], [s, -c, 0], [0, 0, -1]]) @ np.eye(3)  # looks straight down, turned
        tilt = rng.uniform(-0.3, 0.3)
        R = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]]) @ R
        centre = np.array([rng.uniform(-0.3, 0.3), rng.uniform(-0.3, 0.3), height])
        world_rays = rays_HW3 @ R
        z = -height / world_rays[..., 2]
        points = centre + world_rays * z[..., None]
        rgb.append(((np.sin(3 * points) + 1) * 127).astype(np.uint8))
        depth.append(z.astype(np.float16))
        extrinsics.append(np.concatenate([R, (-R @ centre)[:, None]], axis=1).astype(np.float32))

    def pairs(x: list[np.ndarray]) -> torch.Tensor:
        return torch.from_numpy(np.stack(x)).unflatten(0, (count, 2)).contiguous()

    return {
        "rgb_NVHW3": pairs(rgb),
        "depth_NVHW": pairs(depth),
        "extrinsics_NV34": pairs(extrinsics),
        "intrinsics_NV33": torch.from_numpy(K).expand(count, 2, 3, 3).contiguous(),
        "task_N": torch.zeros(count, dtype=torch.int64),
    }


@pytest.fixture(scope="module")
def scenes(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    shards = []
    for seed, split in enumerate(("train", "seen-val", "unseen-val")):
        file = f"{split}-00000.safetensors"
        save_file(plane_scenes(8 if split == "train" else 2, seed), folder / file)
        shards.append({"file": file, "split": split})
    spec = {"train": 8, "seed": 0}
    (folder / "scenes.json").write_text(json.dumps({"shards": shards, "tasks": ["plane"], "spec": spec}))
    return folder


@pytest.mark.parametrize("frame", ["robot", "first-camera"])
def test_points_and_poses_agree(scenes, frame):
    read = read_scenes(scenes, "train", 112)
    batch = make_batch(read, torch.arange(4), frame)
    if frame == "robot":
        assert batch.points_BVHW3[..., 2].abs().max() < 2e-3  # the plane z = 0; depth is float16
    else:
        assert_close(batch.points_BVHW3[:, 0, ..., 2], batch.depth_BVHW[:, 0])
        identity = torch.tensor([0, 0, 0, 0, 0, 0, 1.0]).expand(4, 7)
        assert_close(batch.pose_BV9[:, 0, :7], identity, rtol=0, atol=1e-5)
    # Points that a view's own pose brings back into its camera must lie at its depth.
    from scipy.spatial.transform import Rotation

    R = torch.from_numpy(Rotation.from_quat(batch.pose_BV9[..., 3:7].flatten(0, 1)).as_matrix()).float()
    back = batch.points_BVHW3 @ R.unflatten(0, (4, 2))[:, :, None].mT + batch.pose_BV9[..., None, None, :3]
    assert_close(back[..., 2], batch.depth_BVHW, rtol=0, atol=1e-4)
    assert_close(batch.pose_BV9[..., 7:], torch.full((4, 2, 2), 2 * np.arctan(0.56)).float())


def test_swapped_views_swap_their_targets(scenes):
    read = read_scenes(scenes, "train", 112)
    index = torch.arange(3)
    views = torch.tensor([[1, 0]]).expand(3, 2)
    swapped, plain = make_batch(read, index, "robot", views), make_batch(read, index, "robot")
    for a, b in zip(swapped, plain, strict=True):
        assert torch.equal(a.flip(1), b)


def test_far_pixels_are_invalid(scenes):
    tensors = plane_scenes(1, 0)
    tensors["depth_NVHW"][..., :10] = 5.0
    batch = make_batch(Scenes(**{k: tensors[k] for k in Scenes._fields}), torch.arange(1), "robot")
    assert not batch.valid_BVHW[..., :10].any()
    assert batch.valid_BVHW[..., 10:].all()


def test_pose_encoding_has_a_positive_real_part():
    from scipy.spatial.transform import Rotation

    R = torch.from_numpy(Rotation.random(50, random_state=0).as_matrix()).float().view(25, 2, 3, 3)
    pose = encode_pose(R, torch.zeros(25, 2, 3), torch.eye(3).expand(25, 2, 3, 3), (112, 112))
    assert (pose[..., 6] >= 0).all()


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("vggt_tiny_sim", RECIPE)
    module = importlib.util.module_from_spec(spec)
    sys.modules["vggt_tiny_sim"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["vggt_tiny_sim"]


@pytest.fixture
def small(recipe, monkeypatch, nano):
    """The recipe with a model that takes milliseconds."""
    config = VGGTConfig(**{**nano.config.__dict__, "img_size": 112})
    monkeypatch.setattr(recipe, "TINY", config)
    monkeypatch.setattr(sys, "argv", ["vggt_tiny_sim.py", "--scenes", "scenes"])
    return recipe


@pytest.mark.parametrize("objective", ["geometry", "masked"])
def test_a_resumed_run_equals_a_straight_one(small, scenes, tmp_path, objective):
    def run(out: str, *, stopped: bool) -> dict[str, torch.Tensor]:
        args = small.Args(scenes, tmp_path / out, steps=4, batch=3, warmup=1, threads=1, objective=objective)
        model = small.build(args)
        if not stopped:
            small.train(args, model)
            return model.state_dict()
        original = small.save_checkpoint

        def save_and_stop(args, model, optimizer, step):
            original(args, model, optimizer, step)
            raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(small, "SAVE_EVERY", 0.0)
            patch.setattr(small, "save_checkpoint", save_and_stop)
            with pytest.raises(KeyboardInterrupt):
                small.train(args, model)
        return run(out, stopped=False)

    straight, resumed = run("straight", stopped=False), run("resumed", stopped=True)
    for name, tensor in straight.items():
        assert torch.equal(tensor, resumed[name]), name


@pytest.mark.parametrize("objective", ["geometry", "masked"])
def test_training_lowers_the_loss_and_leaves_a_teacher(small, scenes, tmp_path, objective):
    args = small.Args(
        scenes, tmp_path, steps=30, batch=4, warmup=2, lr=3e-3, threads=1, objective=objective, loss="plain"
    )
    model = small.build(args)
    before = small.evaluate(model, args)["seen-val"]
    small.main(args)
    report = json.loads((tmp_path / f"{args.file}.json").read_text())
    after = report["results"]["seen-val"]
    key = "abs_rel" if objective == "geometry" else "masked_mse"
    assert after[key] < 0.9 * before[key]
    teacher = load_teacher(tmp_path / f"{args.file}.safetensors")
    assert teacher.fingerprint == report["fingerprint"]
    assert teacher.multi_view == (objective == "geometry")
    assert teacher.licence == "Apache-2.0"
    assert report["fingerprint"] in (tmp_path / f"{args.file}.md").read_text()


def test_the_numbers_of_a_file_can_be_computed_again(small, scenes, tmp_path, capsys):
    args = small.Args(scenes, tmp_path, steps=2, batch=2, warmup=1, threads=1)
    small.main(args)
    report = json.loads((tmp_path / f"{args.file}.json").read_text())
    capsys.readouterr()
    small.main(small.Args(scenes, tmp_path, threads=1, evaluate=tmp_path / f"{args.file}.safetensors"))
    assert json.loads(capsys.readouterr().out) == report["results"]


def test_a_checkpoint_of_another_run_is_refused(small, scenes, tmp_path):
    args = small.Args(scenes, tmp_path, steps=1, batch=2, threads=1)
    small.train(args, small.build(args))
    other = small.Args(scenes, tmp_path, steps=1, batch=2, threads=1, seed=1)
    with pytest.raises(SpatialForcingError, match=r"seed \(was 0, now 1\)"):
        small.train(other, small.build(other))


def test_missing_scenes_are_named(tmp_path, scenes):
    with pytest.raises(SpatialForcingError, match=r"spatial_forcing\.sim\.scenes"):
        read_scenes(tmp_path, "train", 112)
    (tmp_path / "scenes.json").write_text((scenes / "scenes.json").read_text())
    with pytest.raises(SpatialForcingError, match="lacks 1 of 1 shards"):
        read_scenes(tmp_path, "train", 112)
    with pytest.raises(SpatialForcingError, match="128 px"):
        read_scenes(scenes, "train", 128)
