"""Verdict on the calibration of a camera: fits, look at the images, or does not fit, and why.

The limits are from measurements in the embedded world and in LIBERO: right calibrations are off by 0 to 2 cm,
0.9 to 1.1 in scale, 0 to 5 degrees in turn, and 0 to 3 cm in depth; matches of moving cameras by 0.8 to 2.7 %
of the image's height.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import log

import torch

from spatial_forcing.geometry.matching import Matched, Matches, matched, matches_of
from spatial_forcing.geometry.motion import Following, View, following
from spatial_forcing.geometry.pinhole import Pinholes


class Verdict(StrEnum):
    """What is said of a camera."""

    FITS = "fits"
    LOOK = "look at the images"
    NOT = "does not fit"
    UNKNOWN = "cannot be judged"


FITS, LOOK, NOT, UNKNOWN = Verdict
Fault = tuple[Verdict, str]
# Above the first number it is to be looked at, above the second it does not fit.
OFFSET = (0.025, 0.05)  # metres
SCALE = (0.2, 0.3)  # of the logarithm: 0.9 to 1.1 fit, 0.7 and 1.4 do not
TURN = (7.5, 17.5)  # degrees
DEPTH = (0.04, 0.075)  # metres
ERROR, CHANCE = (
    (0.03, 0.055),
    (0.45, 0.75),
)  # of matches: of the image's height, of what they are off by chance
GAIN = 0.12  # of this error, that a turn of the camera takes away
HIDES = 0.3  # metres before the end effector in which the arm or a thing may hide it
MILLIMETRES = 20.0  # metres behind it that no room has
BEYOND = 0.14  # metres that a hand reaches beyond its position at most
FEW_PAIRS, OFTEN = 8, 0.5
HAND, LEAST_HAND = 0.1, 3.0  # metres, and pixels that they are to be in images of about a hundred


@dataclass(frozen=True)
class Judgement:
    """What was found about a camera.

    Attributes:
        verdict: of all that was measured the worst.
        reasons: for it.
        seen: share of the frames in which the end effector is in front of the camera and inside the image.
        following: of a camera that stands still.
        matched: of a camera that moves.
        depth: the surface around the projection less the projected depth, metres; None without depth.
        fits_if: what would have to be otherwise for it to fit.
    """

    verdict: Verdict
    reasons: tuple[str, ...]
    seen: float
    following: Following | None = None
    matched: Matched | None = None
    depth: float | None = None
    fits_if: tuple[str, ...] = ()


def judge(view: View, depth: float | None, others: Mapping[str, Pinholes]) -> Judgement:
    """Judges a camera.

    Args:
        view: its frames.
        depth: see :class:`Judgement`.
        others: other cameras of the same frames, by name, which it may have been confused with.
    """
    matches = matches_of(view) if view.moving else None
    found = _judged(view, matches, depth)
    if found.verdict in (FITS, LOOK) or not len(view.pairs_P2):
        return found
    otherwise = {
        words: _judged(replace(view, cameras=cameras), matches, None)
        for words, cameras in alternatives(view.cameras, others).items()
    }
    fits_if = tuple(words for words, one in otherwise.items() if one.verdict == FITS)
    return replace(found, verdict=NOT if fits_if else found.verdict, fits_if=fits_if)


def alternatives(cameras: Pinholes, others: Mapping[str, Pinholes]) -> dict[str, Pinholes]:
    """The cameras of a view without a mistake that is often made, by what the mistake would be."""
    K, E = cameras
    opengl_33 = torch.diag(torch.tensor([1.0, -1.0, -1.0]))
    return {
        "the images were mirrored left to right": Pinholes(_flipped(K, 0), E),
        "the images were upside down": Pinholes(_flipped(K, 1), E),
        "the images were turned by 180 degrees": Pinholes(_flipped(_flipped(K, 0), 1), E),
        "the extrinsics were inverted": Pinholes(K, _inverse(E)),
        "the camera's axes were x right, y up, z backward (OpenGL)": Pinholes(K, opengl_33 @ E),
        "the extrinsics were inverted, and of OpenGL's axes": Pinholes(K, opengl_33 @ _inverse(E)),
    } | {f"it were {name}": other for name, other in others.items()}


def _judged(view: View, matches: Matches | None, depth: float | None) -> Judgement:
    seen = float(view.visible_F.float().mean())
    follows, error = None, None
    if not len(view.pairs_P2):
        faults = [(UNKNOWN, "the end effector hardly moves within an episode")]
    elif matches is not None:
        error = matched(view, matches)
        faults = _of_matched(error, seen)
    else:
        follows = following(view)
        faults = _of_following(follows, view, seen)
    if depth is not None:
        faults += _of_depth(depth)
    verdicts = [verdict for verdict, _ in faults]
    verdict = _worst(verdicts)
    reasons = tuple(words for one, words in faults if one in (verdict, UNKNOWN))
    return Judgement(verdict, reasons, seen, follows, error, depth)


def _of_following(found: Following | None, view: View, seen: float) -> list[Fault]:
    """Faults of a camera that stands still."""
    if found is None and seen < OFTEN:
        where = "behind the camera" if bool((view.places[1] <= 0).all()) else "outside the image"
        return [(UNKNOWN, f"the end effector is {where} in {1 - seen:.0%} of the frames")]
    hand = HAND * float(view.rows_per_metre_F[view.visible_F].median())
    if hand < LEAST_HAND:
        return [(UNKNOWN, f"the end effector is too small in the images: 10 cm of it are {hand:.1f} pixels")]
    if found is None:
        return [(UNKNOWN, "the end effector hardly moves in the images")]
    if found.offset is None:
        return [(NOT, "nothing in the images moves along with the projected end effector")]
    faults: list[Fault] = [
        (
            _grade(found.offset, OFFSET),
            f"what moves along with the projected end effector is {100 * found.offset:.0f} cm from it",
        ),
        (
            _grade(abs(log(found.scale)), SCALE),
            f"it moves {found.scale:g} times as far in the images as projected: see to the focal length and "
            "the distance",
        ),
        (
            _grade(abs(found.turn), TURN),
            f"it moves in another direction in the images than projected, by {found.turn:.0f} degrees",
        ),
        (
            LOOK if found.beyond > BEYOND else FITS,
            f"what moves along with it reaches {100 * found.beyond:.0f} cm beyond it on either side: it is "
            "projected onto the arm, or its position is not that of its tip",
        ),
        (
            LOOK if found.pairs < FEW_PAIRS else FITS,
            f"it is seen to move between {found.pairs} pairs of frames only",
        ),
    ]
    return [fault for fault in faults if fault[0] != FITS]


def _of_matched(found: Matched | None, seen: float) -> list[Fault]:
    """Faults of a camera that moves."""
    if found is None:
        return [(UNKNOWN, "the camera moves, and its images share too little to be matched")]
    grades = _grade(found.error, ERROR), _grade(found.error / max(found.chance, 1e-6), CHANCE)
    faults: list[Fault] = [
        (
            _worst(grades),
            f"the camera moves, and matches between its images are off by {found.error:.1%} of their height, "
            f"by chance {found.chance:.1%}",
        ),
        (
            _grade(found.turn, TURN) if found.gain > GAIN else FITS,
            f"the camera moves, and its images match better if it is turned by {found.turn:.0f} degrees",
        ),
        (
            LOOK if seen < OFTEN else FITS,
            f"the end effector is outside the image in {1 - seen:.0%} of the frames, and matches between "
            "images do not tell where it is",
        ),
    ]
    return [fault for fault in faults if fault[0] != FITS]


def _of_depth(depth: float) -> list[Fault]:
    """Faults by depth: a surface far behind is not the end effector; one close in front may hide it."""
    grade = _grade(abs(depth), DEPTH)
    if grade == FITS:
        return []
    where = "behind" if depth > 0 else "in front of"
    said = f"what is seen there is {100 * abs(depth):.0f} cm {where} the end effector"
    if depth < -HIDES:
        said += ", too far for an arm that hides it: is the recorded depth in metres?"
    elif depth > MILLIMETRES:
        said += ": the recorded depth is probably in millimetres"
    return [(grade if depth > 0 or depth < -HIDES else LOOK, said)]


def _grade(value: float, limits: tuple[float, float]) -> Verdict:
    look, wrong = limits
    return NOT if value > wrong else LOOK if value > look else FITS


def _worst(verdicts: Sequence[Verdict]) -> Verdict:
    return next((one for one in (NOT, UNKNOWN, LOOK) if one in verdicts), FITS)


def _flipped(K_BV33: torch.Tensor, axis: int) -> torch.Tensor:
    """Intrinsics of images mirrored along an axis: 1 - x in place of x."""
    flipped = K_BV33.clone()
    flipped[..., axis, :] = K_BV33[..., 2, :] - K_BV33[..., axis, :]
    return flipped


def _inverse(E_BV34: torch.Tensor) -> torch.Tensor:
    R, t = E_BV34[..., :3], E_BV34[..., 3:]
    return torch.cat([R.mT, -R.mT @ t], dim=-1)
