"""The sheet of images with the projected end effector, and the table of verdicts.

Shapes: T frames of a trail, the last of which is shown; H W pixels.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from spatial_forcing.console import narrow_table
from spatial_forcing.files import write_atomically
from spatial_forcing.geometry.judgement import FITS, NOT, Judgement
from spatial_forcing.geometry.motion import inside

if TYPE_CHECKING:
    from rich.table import Table

HEIGHT = 240  # pixels of an image
RING, DOT = 9, 2  # pixels, radius
COLOUR, DARK, PAPER, INK = (255, 60, 200), (20, 20, 20), (255, 255, 255), (0, 0, 0)
LABEL, TEXT, GAP = 26, 14, 4
PREFIX = "observation.images."  # which all names have
STYLES = {FITS: "green", NOT: "red"}


class Shown(NamedTuple):
    """A frame to show.

    Attributes:
        index: in the data set.
        image_3HW: in [0, 1].
        place_T2: of the end effector in this frame, last, and in some before, for this frame's camera.
        depth_T: of them.
    """

    index: int
    image_3HW: Tensor
    place_T2: Tensor
    depth_T: Tensor


def write_sheet(
    judgements: Mapping[str, Judgement], shown: Mapping[str, Sequence[Shown]], path: Path
) -> Path:
    """Writes a PNG with a row of frames per camera: the end effector in a ring, and where it was before."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(TEXT)
    rows = [[_tile(one, font) for one in shown[camera]] for camera in judgements]
    width = max(sum(tile.width + GAP for tile in row) for row in rows)
    height = sum(LABEL + max(tile.height for tile in row) + GAP for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw, y = ImageDraw.Draw(sheet), 0
    for (camera, found), row in zip(judgements.items(), rows, strict=True):
        draw.text((GAP, y + GAP), f"{camera}: {found.verdict}", fill=INK, font=font)
        x, y = 0, y + LABEL
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + GAP
        y += max(tile.height for tile in row) + GAP
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_atomically(path, lambda temporary: sheet.save(temporary, format="PNG"))


def _tile(shown: Shown, font: Any) -> Any:
    """A frame with its trail and ring; says so where the end effector is not in it."""
    from PIL import Image, ImageDraw

    pixels_HW3 = (255 * shown.image_3HW.clamp(0, 1)).byte().permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(pixels_HW3)
    tile = image.resize((round(image.width * HEIGHT / image.height), HEIGHT)).convert("RGBA")
    layer = Image.new("RGBA", tile.size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(layer)
    last = len(shown.depth_T) - 1
    visible_T = (shown.depth_T > 0) & inside(shown.place_T2)
    for t, (place_2, visible) in enumerate(zip(shown.place_T2, visible_T, strict=True)):
        x, y = float(place_2[0]) * tile.width, float(place_2[1]) * tile.height
        if visible and t < last:
            alpha = round(255 * (t + 1) / (last + 1))
            draw.ellipse(_around(x, y, DOT), fill=(*COLOUR, alpha))
        elif visible:
            draw.ellipse(_around(x, y, RING + 1), outline=(*DARK, 255), width=4)
            draw.ellipse(_around(x, y, RING), outline=(*COLOUR, 255), width=2)
    tile = Image.alpha_composite(tile, layer).convert("RGB")
    if not visible_T[-1]:
        where = "behind the camera" if shown.depth_T[-1] <= 0 else "outside the image"
        ImageDraw.Draw(tile).text((GAP, GAP), where, fill=COLOUR, font=font, stroke_width=2, stroke_fill=DARK)
    return tile


def _around(x: float, y: float, radius: float) -> tuple[float, float, float, float]:
    return x - radius, y - radius, x + radius, y + radius


def table_of(judgements: Mapping[str, Judgement], heights: Mapping[str, int]) -> "Table":
    """Table with a row per camera.

    Args:
        judgements: by camera.
        heights: of their images, pixels.
    """
    from rich.table import Column

    names = ("camera", "seen in", "off by", "follows", "motion", "depth", "verdict")
    # A camera's name may be long; what stands in the other columns is read as one word.
    columns = [Column(name, no_wrap=name != "camera") for name in names]
    table = narrow_table(*columns, caption=CAPTION, caption_justify="left")
    for camera, found in judgements.items():
        follows, matches = found.following, found.matched
        off = share = motion = ""
        if follows is not None and follows.offset is None:
            off, share = "nothing follows", f"{follows.share:.2f}"
        elif follows is not None and follows.offset is not None:
            off = f"{follows.offset_rows * heights[camera]:.0f} px, {100 * follows.offset:.0f} cm"
            share, motion = f"{follows.share:.2f}", f"x {follows.scale:g}, {follows.turn:.0f}°"
        elif matches is not None:
            off = f"{matches.error * heights[camera]:.1f} px"
            motion = f"camera, {matches.turn:.0f}°"
        depth = "" if found.depth is None else f"{100 * found.depth:+.1f} cm"
        verdict = found.verdict
        table.add_row(
            camera.removeprefix(PREFIX),
            f"{found.seen:.0%}",
            off,
            share,
            motion,
            depth,
            verdict,
            style=STYLES.get(verdict),
        )
    return table


CAPTION = (
    "seen in: frames with the end effector inside the image. off by: from its projection to what moves along "
    "with it; of a camera that moves, from where its calibration allows matches between its images. follows: "
    "of what changes there, the share that moves along. motion: in the images against the projection; of a "
    "camera that moves, the turn that it lacks. depth: what is seen there is behind (+) or in front of (-) "
    "the end effector."
)
