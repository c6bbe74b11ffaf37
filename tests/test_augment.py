"""LeRobot's image transforms may be on: stored features move with the policy's images.

H, W: pixels; points are (x, y) in unit coordinates.
"""

import pickle
from pathlib import Path

import pytest
import torch
from lerobot.configs import PreTrainedConfig
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.transforms.transforms import ImageTransformConfig, ImageTransforms, ImageTransformsConfig
from small_dataset import CAMERAS, make_dataset
from torchvision import transforms as v1
from torchvision.transforms import v2

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from lerobot_policy_spatial_forcing.modeling_sf import forced_policy_class
from spatial_forcing import patches
from spatial_forcing.cache.extract import extract
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.grid import crop, flip, resample
from spatial_forcing.patches.transforms import AFFINE_KEY, TrackedTransforms, affines_of
from spatial_forcing.teachers import load_teacher

H, W = 60, 90


@pytest.fixture(autouse=True)
def lerobots_own():
    """Every test starts and ends with LeRobot as it is."""
    patches.undo_all()
    yield
    patches.undo_all()


SMOOTH = v2.InterpolationMode.BILINEAR
GEOMETRIC = {
    "affine": v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.8, 1.2), shear=8, interpolation=SMOOTH),
    "rotation": v2.RandomRotation(15, interpolation=SMOOTH),
    "flip": v2.RandomHorizontalFlip(1.0),
    "upside down": v2.RandomVerticalFlip(1.0),
    "crop": v2.RandomCrop((50, 70)),
    "resized crop": v2.RandomResizedCrop((48, 64), scale=(0.6, 0.9), antialias=True),
    "nested": v2.Compose([v2.RandomHorizontalFlip(0.5), v2.RandomRotation(15, interpolation=SMOOTH)]),
}


def blob(x: float, y: float) -> torch.Tensor:
    """A 3HW image with one bright spot at pixel coordinates (x, y)."""
    v, u = torch.meshgrid(torch.arange(H) + 0.5, torch.arange(W) + 0.5, indexing="ij")
    return torch.exp(-((u - x) ** 2 + (v - y) ** 2) / 18).expand(3, H, W).contiguous()


def spot(image_3HW: torch.Tensor) -> torch.Tensor:
    """The centre of brightness, in unit coordinates."""
    height, width = image_3HW.shape[-2:]
    v, u = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij"
    )
    return torch.stack([(image_3HW[0] * u).sum(), (image_3HW[0] * v).sum()]) / image_3HW[0].sum()


@pytest.mark.parametrize("name", GEOMETRIC)
def test_the_affine_leads_back_to_where_things_were(name):
    torch.manual_seed(0)
    tracked = TrackedTransforms(GEOMETRIC[name])
    for x, y in [(35.0, 25.0), (50.0, 35.0), (44.5, 30.0), (55.0, 26.0)]:
        moved = tracked(blob(x, y))
        back = tracked.affine_23 @ torch.cat([spot(moved), torch.ones(1)])
        assert torch.allclose(back, torch.tensor([x / W, y / H]), atol=0.1 / H)


def test_photometric_transforms_and_lerobots_own_move_nothing():
    names = ("SharpnessJitter", "GaussianNoise", "MotionBlur", "JPEGCompression")
    config = ImageTransformsConfig(
        enable=True,
        max_num_transforms=5,
        tfs={
            name: ImageTransformConfig(type=name, kwargs={} if name != names[0] else {"sharpness": 0.5})
            for name in names
        }
        | {"colour": ImageTransformConfig(type="ColorJitter", kwargs={"brightness": (0.5, 1.5)})},
    )
    tracked = TrackedTransforms(ImageTransforms(config))
    tracked((255 * blob(40, 30)).to(torch.uint8))
    assert torch.equal(tracked.affine_23, torch.eye(2, 3))


def test_bending_a_image_is_refused():
    tracked = TrackedTransforms(v2.RandomPerspective(distortion_scale=0.8, p=1.0))
    with pytest.raises(SpatialForcingError, match=r"bend images \(RandomPerspective\).*teacher online"):
        tracked(blob(40, 30))


@pytest.mark.parametrize(
    "unknown",
    [
        lambda image: image.flip(-1),
        v2.Lambda(lambda image: image),
        v1.RandomHorizontalFlip(1.0),
        v1.CenterCrop(16),
    ],
)
def test_toward_images_that_moved_nobody_knows_where_nothing_is_aligned(unknown):
    tracked, image = TrackedTransforms(v2.Compose([v2.RandomHorizontalFlip(0.0), unknown])), blob(40, 30)
    assert torch.equal(tracked(image), unknown(image))  # the policy is trained as ever
    batch = {AFFINE_KEY + CAMERAS[0]: tracked.affine_23[None]}
    assert affines_of(batch, [CAMERAS[1]]) is None  # that camera is not aligned
    with pytest.raises(
        SpatialForcingError, match=r"transforms of the data set move images is not known.*online"
    ):
        affines_of(batch, list(CAMERAS))


@pytest.mark.parametrize("kind", [v2.RandAugment, v2.TrivialAugmentWide, v2.AutoAugment, v2.AugMix])
def test_transforms_that_do_not_say_what_they_drew_are_not_followed(kind):
    tracked = TrackedTransforms(v2.Compose([v2.RandomHorizontalFlip(0.0), kind()]))
    tracked((255 * blob(40, 30)).to(torch.uint8))
    assert tracked.affine_23.isnan().all()


# ---- in LeRobot's data sets
# ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "small", size=56)


def transforms(**tfs: dict) -> ImageTransforms:
    configs = {name: ImageTransformConfig(type=name, kwargs=kwargs) for name, kwargs in tfs.items()}
    return ImageTransforms(ImageTransformsConfig(enable=True, max_num_transforms=len(tfs), tfs=configs))


def frames(root: Path, chosen: ImageTransforms | None, **options) -> LeRobotDataset:
    return LeRobotDataset("local/small", root=root, image_transforms=chosen, **options)


def test_images_and_random_numbers_stay_the_same(root):
    tfs = {
        "RandomAffine": {"degrees": 10, "translate": (0.1, 0.1)},
        "ColorJitter": {"brightness": (0.5, 1.5)},
    }

    def draw(dataset):
        torch.manual_seed(5)
        return [dataset[i] for i in (0, 7, 3)], torch.rand(1)

    before, after_before = draw(frames(root, transforms(**tfs)))
    patches.track_image_transforms()
    tracked, after_tracked = draw(frames(root, transforms(**tfs)))
    assert torch.equal(after_before, after_tracked)
    for one, other in zip(before, tracked, strict=True):
        assert all(torch.equal(one[key], other[key]) for key in CAMERAS)
        assert set(other) - set(one) == {AFFINE_KEY + key for key in CAMERAS}


def test_without_transforms_nothing_is_added(root):
    patches.track_image_transforms()
    assert not [key for key in frames(root, None)[0] if key.startswith(AFFINE_KEY)]
    assert affines_of({"observation.state": torch.zeros(2, 4)}, list(CAMERAS)) is None


@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.system)])
def test_affines_survive_worker_processes_and_collation(root, start):
    patches.track_image_transforms()
    dataset = frames(root, transforms(RandomHorizontalFlip={"p": 1.0}))
    assert "observation.state" in dataset[0]  # used before it is handed over
    loader = torch.utils.data.DataLoader(
        dataset, 4, num_workers=1, multiprocessing_context=start, timeout=200
    )
    affine_BV23 = affines_of(next(iter(loader)), list(CAMERAS))
    assert torch.allclose(affine_BV23, flip().expand(4, 2, 2, 3), atol=1e-6)


def test_a_streaming_data_set_with_transforms_is_refused(root):
    from lerobot.datasets.streaming_dataset import StreamingLeRobotDataset

    patches.track_image_transforms()
    next(iter(StreamingLeRobotDataset("local/small", root=root)))
    moved = StreamingLeRobotDataset("local/small", root=root, image_transforms=transforms(ColorJitter={}))
    for use in (lambda: next(iter(moved)), lambda: pickle.dumps(moved)):  # here, or in a worker process
        with pytest.raises(SpatialForcingError, match="cannot follow the image transforms of a streaming"):
            use()


# ---- in a forced policy
# ----------------------------------------------------------------------------------------------------------


class Ramp:
    """A teacher whose features are where they are: tokens hold their own x and y."""

    width = 2

    def __call__(self, images_BV3HW: torch.Tensor) -> Features:
        B, V = images_BV3HW.shape[:2]
        y, x = torch.meshgrid((torch.arange(8) + 0.5) / 8, (torch.arange(8) + 0.5) / 8, indexing="ij")
        tokens = torch.stack([x, y], dim=-1).expand(B, V, 8, 8, 2)
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool))


def test_targets_of_moved_images_are_what_the_policy_sees_there():
    inner = crop(0.25, 0.1, 0.75, 0.6)
    features = Ramp()(torch.zeros(1, 1, 3, 8, 8))
    target, valid = resample(features, 4, 4, inner.view(1, 1, 2, 3))
    centres = (torch.arange(4) + 0.5) / 4
    assert valid.all()
    assert torch.allclose(target[0, 0, 0, :, 0], 0.25 + 0.5 * centres, atol=1e-5)
    assert torch.allclose(target[0, 0, :, 0, 1], 0.1 + 0.5 * centres, atol=1e-5)


@pytest.mark.parametrize("tfs", [{"RandomHorizontalFlip": {"p": 1.0}}, {"RandomAffine": {"degrees": 10}}])
def test_stored_features_move_with_the_policys_images(root, tmp_path, tfs):
    """The loss is toward the recorded images' features, moved by hand; not toward them unmoved."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata
    from lerobot.policies import make_policy

    name = "untrained-tiny"
    cache = extract(root, load_teacher(name), name, tmp_path / "features")
    options = {"image_size": 56, "patch": 14, "width": 32, "depth": 4, "heads": 2, "device": "cpu"}
    # LeRobot's trainer makes the data set first, and nothing is switched on by then.
    dataset = frames(root, transforms(**tfs), delta_timestamps={"action": [i / 10 for i in range(8)]})
    config: PreTrainedConfig = CLASSES["tiny"](**options, forcing=ForcingConfig(cache=str(cache)))
    assert not patches.replaced()
    policy = make_policy(config, ds_meta=LeRobotDatasetMetadata("local/small", root=root)).train()
    assert isinstance(policy, forced_policy_class("tiny"))
    batch = next(iter(torch.utils.data.DataLoader(dataset, batch_size=3)))
    affine_BV23 = affines_of(batch, list(CAMERAS))
    assert affine_BV23 is not None
    _, logs = policy.forward(batch)

    stored = policy.feature_source.store.read(batch["index"])
    moved, _ = policy.forcing.target(stored, affine_BV23)
    still, _ = policy.forcing.target(stored)
    assert (moved - still).abs().max() > 1e-3
    for target, equal in ((moved, True), (still, False)):
        loss = loss_toward(policy, batch, target)
        assert (abs(loss - logs["align_loss"]) < 1e-6) == equal
    if "RandomHorizontalFlip" in tfs:
        mirrored = still.unflatten(1, (2, 4, 4)).flip(3)
        assert torch.allclose(moved.unflatten(1, (2, 4, 4)), mirrored, atol=1e-4)


def loss_toward(policy, batch, target_BNC: torch.Tensor) -> float:
    """The alignment loss of a policy toward a target made by hand."""
    from spatial_forcing import cosine_distance

    sf = policy.forcing
    with sf.watch():
        super(type(policy).__mro__[1], policy).forward(batch)
    valid_BN = torch.ones(target_BNC.shape[:2], dtype=torch.bool)
    return cosine_distance(sf.projector(sf.tap.visual_BND(), valid_BN), target_BNC, valid_BN).item()


def test_statistics_follow_renamed_cameras():
    """As LeRobot's preprocessor has them: its next release renames them, this one finds none of that name."""
    from lerobot_policy_spatial_forcing.forcing import stats_of_images
    from spatial_forcing.patches.versions import renames_before_preprocessing

    stats = {"observation.images.left": {"mean": 1}, "observation.images.right": {"mean": 2}}
    names = ("observation.images.camera1", "observation.images.camera2")
    found = stats_of_images(dict(zip(names, CAMERAS, strict=True)), stats)
    renamed = {"mean": 1}, {"mean": 2}
    assert found == stats | dict(
        zip(names, renamed if renames_before_preprocessing() else (None, None), strict=True)
    )
    assert stats_of_images({name: name for name in (*CAMERAS, "absent")}, stats) == stats
    swapped = stats_of_images(dict(zip(CAMERAS, CAMERAS[::-1], strict=True)), stats)
    assert (swapped == stats) is not renames_before_preprocessing()
