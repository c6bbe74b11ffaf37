"""The command ``calibration check``: projects the end effector into images, and sees whether they agree.

Shapes: F frames, V views, P pairs of frames, T frames of an episode, H W pixels, h w of a depth map, D cells
of a disc.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import default_collate

from spatial_forcing.datasets import DatasetError, open_dataset
from spatial_forcing.errors import UnknownNameError
from spatial_forcing.files import check_folder
from spatial_forcing.geometry.calibration import Calibration, image_size
from spatial_forcing.geometry.cameras import CalibrationError, CameraSource, cameras_of
from spatial_forcing.geometry.judgement import NOT, Judgement, judge
from spatial_forcing.geometry.motion import View, inside
from spatial_forcing.geometry.pinhole import Pinholes
from spatial_forcing.geometry.sheet import Shown, table_of, write_sheet
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.depths import Depths, recorded

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

# Metres that the end effector, or the camera, moves between the frames of a pair, at least; and half of it,
# too, where that gives few pairs, as in short demonstrations.
STEP, ENOUGH = 0.03, 40
STILL = 1e-3  # metres that a camera may move in an episode and stand still
PAIRS, PAIRS_PER_EPISODE, EPISODES = 200, 25, 100  # at most
TRAIL = 5  # frames before, whose end effector is drawn too
HEIGHT = 112  # pixels of images that are compared
BATCH = 16
DISC = 0.04  # metres around the projection in which a surface is looked for
CELLS = 9


def check_calibration(options: Any, console: "Console") -> bool:
    """Checks cameras, prints a table, and writes the sheet of images.

    Args:
        options: of :class:`spatial_forcing.geometry.options.CalibrationCheck`.
        console: for the table.

    Returns:
        Whether no camera's calibration is wrong.

    Raises:
        SpatialForcingError: an option, the data set or the calibration cannot be.
    """
    from spatial_forcing.console import stages

    _check_options(options)
    dataset = open_dataset(str(options.dataset))
    source = cameras_of(options.calibration, dataset)
    cameras = _cameras(options.cameras, source, dataset.meta)
    source.check(dataset.meta, cameras)
    with stages(console) as bars:
        judgements, shown = examined(dataset, source, cameras, options.frames, bars)
    heights = {camera: image_size(dataset.meta.features[camera])[0] for camera in cameras}
    console.print(table_of(judgements, heights))
    lines = [line for camera, found in judgements.items() for line in lines_of(camera, found)]
    if isinstance(source, Calibration):
        others = [key for key in _images_of(dataset.meta) if key not in source.cameras]
        lines += [f"{key} is not calibrated: points of its tokens cannot be computed." for key in others]
    for line in lines:
        console.print(line, highlight=False, markup=False)
    print(f"Wrote {write_sheet(judgements, shown, options.out)}")
    return all(found.verdict != NOT for found in judgements.values())


def lines_of(camera: str, found: Judgement) -> Iterator[str]:
    """Why a camera got its verdict."""
    if found.reasons:
        yield f"{camera}: {found.verdict} ({'; '.join(found.reasons)})."
    if found.fits_if:
        yield f"{camera} would fit if {', or if '.join(found.fits_if)}."


def examined(
    dataset: Any, source: CameraSource, cameras: Sequence[str], frames: int, bars: "Progress"
) -> tuple[dict[str, Judgement], dict[str, list[Shown]]]:
    """Judges cameras, and projects the end effector into evenly spread frames.

    Args:
        dataset: a LeRobotDataset.
        source: of its cameras.
        cameras: which.
        frames: number of frames to show.
        bars: gets one for the frames.

    Returns:
        Both by camera.
    """
    pairs = moving_pairs(dataset, source, cameras, STEP)
    if min(map(len, pairs.values())) < ENOUGH:
        for camera, more in moving_pairs(dataset, source, cameras, STEP / 2).items():
            pairs[camera] = sorted({*pairs[camera], *more})
    spread = torch.linspace(0, dataset.meta.total_frames - 1, min(frames, dataset.meta.total_frames))
    drawn = set(spread.round().long().tolist())
    indices = sorted(drawn.union(*(pair for of in pairs.values() for pair in of)))
    read = _Read(dataset, source, cameras, _depths(dataset, cameras))
    bar = bars.add_task("frames", total=len(indices))
    for start in range(0, len(indices), BATCH):
        read.add(indices[start : start + BATCH], drawn)
        bars.advance(bar, min(BATCH, len(indices) - start))
    place = {index: row for row, index in enumerate(indices)}
    rows = {
        camera: torch.tensor([[place[i], place[j]] for i, j in of]).reshape(-1, 2).long()
        for camera, of in pairs.items()
    }
    return {camera: read.judged(camera, rows[camera]) for camera in cameras}, read.shown


def moving_pairs(
    dataset: Any, source: CameraSource, cameras: Sequence[str], step: float
) -> dict[str, list[tuple[int, int]]]:
    """Pairs of frames of an episode for each camera, from some episodes in a random order.

    Between them the end effector moves by a step; or the camera, if it does.
    """
    episodes = dataset.meta.episodes
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0))
    pairs: dict[str, list[tuple[int, int]]] = {camera: [] for camera in cameras}
    for episode in order[:EPISODES].tolist():
        first, end = (int(episodes[episode][f"dataset_{at}_index"]) for at in ("from", "to"))
        batch = columns_of(dataset, first, end)
        position_T3, centres_TV3 = source.end_effector(batch), source.pinholes(batch, cameras).centres_BV3
        for v, found in enumerate(pairs.values()):
            moves = float((centres_TV3[:, v] - centres_TV3[0, v]).abs().max()) > STILL
            of_episode = _steps(centres_TV3[:, v] if moves else position_T3, step)
            few = torch.linspace(0, len(of_episode) - 1, min(len(of_episode), PAIRS_PER_EPISODE))
            found += [(first + i, first + j) for i, j in (of_episode[k] for k in few.round().long().tolist())]
        if all(len(found) >= PAIRS for found in pairs.values()):
            break
    return {camera: found[:PAIRS] for camera, found in pairs.items()}


def _steps(track_T3: Tensor, step: float) -> list[tuple[int, int]]:
    """Frames that follow each other in steps of what moves."""
    steps, last = [], 0
    for t in range(1, len(track_T3)):
        if float((track_T3[t] - track_T3[last]).norm()) >= step:
            steps.append((last, t))
            last = t
    return steps


def columns_of(dataset: Any, first: int, end: int) -> dict[str, Tensor]:
    """The numeric columns of consecutive frames, without reading images."""
    features = dataset.meta.features
    names = [
        name
        for name in dataset.hf_dataset.column_names
        if features.get(name, {}).get("dtype", "").startswith(("float", "int", "uint", "bool"))
    ]
    rows = dataset.hf_dataset.select_columns(names)[first:end]
    return {name: torch.stack(list(values)) for name, values in rows.items()}


# ---- frames ------------------------------------------------------------------------------------------------


class _Read:
    """What is kept of the frames read so far."""

    def __init__(self, dataset: Any, source: CameraSource, cameras: Sequence[str], depths: Depths | None):
        self.dataset, self.source, self.cameras, self.depths = dataset, source, list(cameras), depths
        self.shown: dict[str, list[Shown]] = {camera: [] for camera in cameras}
        self._images: dict[str, list[Tensor]] = {camera: [] for camera in cameras}
        self._gaps: dict[str, list[Tensor]] = {camera: [] for camera in cameras}
        self._pinholes: list[Pinholes] = []
        self._positions: list[Tensor] = []

    def add(self, indices: Sequence[int], drawn: set[int]) -> None:
        """Reads frames; those in ``drawn`` are shown."""
        batch = default_collate([_frame(self.dataset, index) for index in indices])
        pinholes, position_F3 = self.source.pinholes(batch, self.cameras), self.source.end_effector(batch)
        self._pinholes.append(pinholes)
        self._positions.append(position_F3)
        place_FV12, depth_FV1 = pinholes.project(position_F3[:, None, None])
        for v, camera in enumerate(self.cameras):
            small = shrunk(batch[camera], HEIGHT)
            self._images[camera].append((255 * small).round().to(torch.uint8))
            for row, index in enumerate(indices):
                if index in drawn:
                    one = Pinholes(*(of[row : row + 1, v : v + 1] for of in pinholes))
                    self.shown[camera].append(self._to_show(batch, camera, row, index, one))
        if self.depths is not None:
            maps = self.depths.maps(batch, self.cameras, 1)
            focal_FV2 = pinholes.intrinsics_BV33[..., (0, 1), (0, 1)].abs()
            for v, camera in enumerate(self.cameras):
                gap_F = surface_gap(maps[v], place_FV12[:, v, 0], depth_FV1[:, v, 0], focal_FV2[:, v])
                self._gaps[camera].append(gap_F)

    def judged(self, camera: str, pairs_P2: Tensor) -> Judgement:
        """Judges a camera by the frames read."""
        gap_F = torch.cat(self._gaps[camera]) if self._gaps[camera] else torch.zeros(0)
        known_F = gap_F[~gap_F.isnan()]
        depth = float(known_F.median()) if len(known_F) >= 0.2 * len(gap_F) and len(known_F) else None
        images_F3HW = torch.cat(self._images[camera]).float() / 255
        view = View(images_F3HW, self._of(camera), torch.cat(self._positions), pairs_P2)
        others = {other: self._of(other) for other in self.cameras if other != camera}
        return judge(view, depth, others)

    def _of(self, camera: str) -> Pinholes:
        v = self.cameras.index(camera)
        return Pinholes(*(torch.cat(of)[:, v : v + 1] for of in zip(*self._pinholes, strict=True)))

    def _to_show(
        self, batch: Mapping[str, Any], camera: str, row: int, index: int, pinhole: Pinholes
    ) -> Shown:
        before = min(TRAIL, int(batch["frame_index"][row]))
        position_T3 = self.source.end_effector(columns_of(self.dataset, index - before, index + 1))
        place_11T2, depth_11T = pinhole.project(position_T3[None, None])
        return Shown(index, _image(batch[camera], row), place_11T2[0, 0], depth_11T[0, 0])


def surface_gap(depth_Fhw: Tensor, place_F2: Tensor, depth_F: Tensor, focal_F2: Tensor) -> Tensor:
    """How far the nearest surface around the end effector is behind it, or, below zero, in front of it.

    Args:
        depth_Fhw: metres, 0 or NaN where unknown.
        place_F2: the end effector's projection.
        depth_F: its depth.
        focal_F2: focal lengths in unit coordinates.

    Returns:
        gap_F in metres; NaN where the end effector is not seen.
    """
    steps = torch.linspace(-DISC, DISC, CELLS)
    at_D2 = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), dim=-1).flatten(0, 1)
    at_D2 = at_D2[at_D2.norm(dim=-1) <= DISC]
    place_FD2 = place_F2[:, None] + at_D2 * (focal_F2 / depth_F.clamp(min=0.01)[:, None])[:, None]
    sampled_F11D = F.grid_sample(
        depth_Fhw.float()[:, None], (place_FD2 * 2 - 1)[:, None], mode="nearest", align_corners=False
    )
    gap_FD = sampled_F11D[:, 0, 0] - depth_F[:, None]
    off_FD = torch.where(sampled_F11D[:, 0, 0] > 0, gap_FD.abs(), torch.inf)
    nearest_F1 = off_FD.argmin(-1, keepdim=True)
    gap_F = gap_FD.gather(1, nearest_F1)[:, 0]
    seen_F = inside(place_F2) & (depth_F > 0.01) & off_FD.gather(1, nearest_F1)[:, 0].isfinite()
    return torch.where(seen_F, gap_F, torch.nan)


def shrunk(images: Tensor, height: int) -> Tensor:
    """Images (F, 3, H, W), or the last ones of histories, at most ``height`` pixels high."""
    images_F3HW = images[:, -1] if images.ndim == 5 else images
    H, W = images_F3HW.shape[-2:]
    if height >= H:
        return images_F3HW.float()
    size = (height, max(1, round(W * height / H)))
    return F.interpolate(images_F3HW.float(), size=size, mode="area")


def _image(images: Tensor, row: int) -> Tensor:
    return images[row, -1] if images.ndim == 5 else images[row]


def _frame(dataset: Any, index: int) -> dict[str, Any]:
    try:
        return dataset[index]
    except Exception as error:  # of many kinds: LeRobot's, those of its decoders, the disk's
        raise DatasetError(
            f"Frame {index} of the data set in {dataset.root} cannot be read: {type(error).__name__}: "
            f"{error}. One of its files is damaged or missing."
        ) from error


# ---- options -----------------------------------------------------------------------------------------------


def _check_options(options: Any) -> None:
    if options.dataset is None:
        raise CalibrationError("Say which data set: --dataset <folder, or owner/name on the Hub>.")
    if options.frames < 1:
        raise CalibrationError(f"--frames is the number of frames to draw, at least 1; got {options.frames}.")
    out = Path(options.out)
    if out.is_dir() or out.suffix.lower() != ".png":
        raise CalibrationError(f"--out names the image to write, a file that ends in .png; got {out}.")
    check_folder(out.parent, CalibrationError)


def _cameras(named: Sequence[str], source: CameraSource, meta: Any) -> list[str]:
    """The cameras to check: those named, or all that are calibrated."""
    there = _images_of(meta)
    if named:
        for key in named:
            if key not in there:
                raise CalibrationError(str(UnknownNameError("camera of the data set", key, there)))
        return list(dict.fromkeys(named))
    return list(source.cameras) if isinstance(source, Calibration) else there


def _images_of(meta: Any) -> list[str]:
    """The cameras of a data set whose features are images and no depth."""
    return [key for key in meta.camera_keys if key not in meta.depth_keys]


def _depths(dataset: Any, cameras: Sequence[str]) -> Depths | None:
    """Recorded depth, if there is any of these cameras."""
    try:
        return recorded(dataset, cameras)
    except ProbeError:
        return None
