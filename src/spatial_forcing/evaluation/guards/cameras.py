"""Guards of images: cameras, resolution, aspect, orientation, cameras that are swapped.

Mean images of cameras that move from episode to episode may look swapped or mirrored by chance. So a guard
that takes some of the data set's own episodes for swapped or turned ones says less: see :func:`mistaken`.

Shapes: h w of a thumbnail, N of them.
"""

from collections.abc import Callable, Mapping
from itertools import permutations
from typing import Literal

import torch
from torch import Tensor

from spatial_forcing.evaluation.guards.compare import ENOUGH, Case
from spatial_forcing.evaluation.guards.shown import LOOKS

EMPTY = "observation.images.empty_camera"  # LeRobot fills those with black
ASPECT = 0.02
# Correlation of the parts that a flip turns into their negative: below this one is the other, flipped.
FLIPPED, FAINT = -0.4, 0.05
BETTER, SURELY, LIKE, UNLIKE = 0.05, 0.25, 0.3, 0.1
DARKER = 0.12  # of the range of brightness
MOST = 4  # cameras whose order is looked at
DRAWS = 50  # looks at the data set's own episodes
UP_DOWN, LEFT_RIGHT = -2, -1
Judgement = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], bool]
NAMES = {(): "as they are", (UP_DOWN,): "upside down", (LEFT_RIGHT,): "mirrored left to right"}
NAMES[UP_DOWN, LEFT_RIGHT] = "turned by 180 degrees"


def cameras(case: Case) -> None:
    """The policy's cameras are there."""
    wanted = [key for key in case.policy.config.image_features if not key.startswith(EMPTY)]
    missing = [key for key in wanted if key not in case.shown.sizes]
    if missing:
        spare = [key for key in case.shown.sizes if key not in wanted]
        pairs = ", ".join(f'"{new}": "{old}"' for new, old in zip(spare, missing, strict=False))
        case.say(
            "wrong",
            "cameras",
            expected=f"{', '.join(wanted)}",
            found=f"{', '.join(case.shown.sizes) or 'none'}",
            advice=(
                f"Rename what shows the same, after --: --rename_map='{{{pairs}}}'; or choose the cameras "
                "with the environment's flags."
                if spare
                else "Choose an environment, or flags of it, with these cameras."
            ),
        )
    case.fits("cameras")


def sizes(case: Case) -> None:
    """Images have the height and width that the policy was trained on."""
    for camera, feature in case.policy.config.image_features.items():
        got = case.shown.sizes.get(camera)
        if got is None:
            continue
        height, width = case.trained.sizes.get(camera, tuple(feature.shape[-2:]))
        if (height, width) == got:
            continue
        squeezed = abs(height / width - got[0] / got[1]) > ASPECT * height / width
        fields = vars(case.config)
        flags = [f"--env.{name}" for name in ("observation_height", "observation_width") if name in fields]
        flags = flags or (["--env.size"] if "size" in fields and height == width else [])
        given = " ".join(f"{flag}={n}" for flag, n in zip(flags, (height, width), strict=False))
        case.say(
            "wrong" if squeezed else "odd",
            "aspect" if squeezed else "resolution",
            expected=f"{height} x {width} pixels (height x width) of {camera}, as in training",
            found=f"{got[0]} x {got[1]}",
            advice=f"Render as the data were: {given} after --." if given else "Render as the data were.",
        )
    case.fits("resolution")


def orientation(case: Case) -> None:
    """Images are not flipped, and no two cameras swapped, against the training data."""
    trained, shown = case.trained.images, case.shown.images
    both = [camera for camera in case.policy.config.image_features if camera in trained and camera in shown]
    if not both:
        return
    if 1 < len(both) <= MOST and (order := _order(both, trained, shown)) != tuple(both):
        pairs = [
            f"{camera} like {other}" for camera, other in zip(both, order, strict=True) if camera != other
        ]
        kind, doubt = _surely(case, both, lambda a, b: _order(both, a, b) != tuple(both))
        case.say(
            kind,
            "cameras' order",
            expected="each camera to show what it showed in training",
            found=f"images of the training data look like those of another camera: {', '.join(pairs)}",
            advice=f"Exchange the names with --rename_map after --, or the environment's own flags.{doubt}",
        )
        return
    for camera in both:
        _judge(case, camera, trained[camera], shown[camera])
    case.fits("orientation")


def rendering(case: Case) -> None:
    """Images are rendered as those of the demonstrations, where these note how."""
    noted = case.trained.rendering
    if noted is None:
        return
    if noted != case.rendering:
        case.say(
            "wrong",
            "rendering",
            expected=f"{noted} rendering, which {case.trained.source} notes",
            found=case.rendering,
            advice=f"Give --rendering {noted} before --.",
        )
    case.fits("rendering")


def _judge(case: Case, camera: str, trained_3hw: Tensor, shown_3hw: Tensor) -> None:
    """Says whether a camera's images are flipped, unlike those of training, or darker."""
    alike, turned = correlation(trained_3hw, shown_3hw), best_flip(trained_3hw, shown_3hw)[0]
    if flips := _flips(trained_3hw, shown_3hw):
        kind, doubt = _surely(case, [camera], lambda a, b: bool(_flips(a[camera], b[camera])))
        case.say(
            kind,
            "orientation",
            expected=f"{camera} as in training",
            found=f"it is {NAMES[flips]}: the mean images correlate by {alike:.2f} as they are and by "
            f"{turned:.2f} so turned",
            advice="Turn the images where the environment or the data set was processed. LeRobot's LIBERO "
            f"processor turns the simulator's images by 180 degrees, as public data sets were.{doubt}",
        )
        return
    if alike < UNLIKE:
        case.say(
            "odd",
            "images",
            expected=f"{camera} to look like the training data",
            found=f"the mean images at the start of episodes correlate by {alike:.2f}",
            advice="Look at both: another scene, task or camera?",
        )
        return
    light = [float(image.mean()) for image in (trained_3hw, shown_3hw)]
    if abs(light[0] - light[1]) > DARKER:
        case.say(
            "odd",
            "brightness",
            expected=f"{camera} with a mean of {light[0]:.2f} (black 0, white 1), as in training",
            found=f"{light[1]:.2f}",
            advice="Other versions of a simulator render otherwise: compare them (MuJoCo, drivers).",
        )


def _flips(trained_3hw: Tensor, shown_3hw: Tensor) -> tuple[int, ...]:
    """The axes along which images are flipped against those of training; none if that is not plain."""
    alike, (turned, flips) = correlation(trained_3hw, shown_3hw), best_flip(trained_3hw, shown_3hw)
    sure = turned > alike + SURELY or all(opposed(trained_3hw, shown_3hw, axis) for axis in flips)
    return flips if sure and turned > LIKE else ()


def _surely(case: Case, cameras: list[str], judged: Judgement) -> tuple[Literal["wrong", "odd"], str]:
    """The kind of a finding of mean images, and the doubt in it as a sentence."""
    if case.trained.count < ENOUGH:  # that is said of a few episodes anyway
        return "wrong", ""
    firsts = {camera: case.trained.firsts[camera] for camera in cameras if camera in case.trained.firsts}
    if len(firsts) < len(cameras) or not (often := mistaken(firsts, judged)):
        return "wrong", ""
    return "odd", (
        f" It may be chance: {often} of {DRAWS} draws of {LOOKS} of the data set's own episodes look so "
        "beside the others, as where cameras move."
    )


def mistaken(firsts: Mapping[str, Tensor], judged: Judgement) -> int:
    """How many random looks at the data set's own episodes, compared with the others, are judged to differ.

    Args:
        firsts: thumbnails_N3hw by camera, of the same episodes.
        judged: says of two sets of mean_3hw by camera, the others' and the look's, whether they differ.
    """
    count, draw = min(len(of) for of in firsts.values()), torch.Generator().manual_seed(0)
    if count < 2:
        return 0
    found = 0
    for _ in range(DRAWS):
        order = torch.randperm(count, generator=draw)
        look, others = order[: min(LOOKS, count // 2)], order[min(LOOKS, count // 2) :]
        found += judged(
            *({camera: of[rows].mean(0) for camera, of in firsts.items()} for rows in (others, look))
        )
    return found


def _order(both: list[str], trained: Mapping[str, Tensor], shown: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The environment's cameras in the order in which they look most like those of the data."""

    def likeness(order: tuple[str, ...]) -> float:
        pairs = [(trained[a], shown[b]) for a, b in zip(both, order, strict=True)]
        return sum(best_flip(a, b)[0] for a, b in pairs) / len(both)

    best = max(permutations(both), key=likeness)
    return best if likeness(best) > max(likeness(tuple(both)) + BETTER, LIKE) else tuple(both)


def correlation(a_3hw: Tensor, b_3hw: Tensor) -> float:
    """Correlation of two images over pixels, each channel less its mean."""
    return _cosine(*(image - image.mean((-2, -1), keepdim=True) for image in (a_3hw, b_3hw)))


def best_flip(a_3hw: Tensor, b_3hw: Tensor) -> tuple[float, tuple[int, ...]]:
    """The largest correlation of an image with another one, flipped or not, and the axes flipped for it."""
    return max((correlation(a_3hw, b_3hw.flip(axes)), axes) for axes in NAMES)


def opposed(a_3hw: Tensor, b_3hw: Tensor, axis: int) -> bool:
    """Whether an image is rather another one flipped along an axis than as it is.

    An image is the sum of a part that a flip leaves as it is and one that it turns into its negative. Of two
    images of one scene the second parts correlate positively, of flipped ones negatively; that tells them
    apart even where the scene is nearly symmetric and both correlate well.
    """
    parts = [image - image.flip(axis) for image in (a_3hw, b_3hw)]
    whole = [float(image.std()) for image in (a_3hw, b_3hw)]
    enough = all(float(part.std()) > FAINT * of for part, of in zip(parts, whole, strict=True))
    return enough and _cosine(*parts) < FLIPPED


def _cosine(a: Tensor, b: Tensor) -> float:
    size = a.norm() * b.norm()
    return float((a * b).sum() / size) if size > 0 else float(torch.zeros(()))
