"""Feature caches of a comparison's training episodes: one per teacher and data fraction.

A cache is of the episodes that its runs train on and of no others: neither its statistics nor the directions
of its codec know of held-out episodes, nor a run on a tenth of the data of the rest.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.compare.arm import PLAIN, Arm
from spatial_forcing.compare.flags import arm_flags, policy_of
from spatial_forcing.compare.options import TEACHER
from spatial_forcing.compare.plan import Comparison

RECORDED = "recorded"
LEAST = 0.0  # weight of tokens that their source gives none


@dataclass(frozen=True)
class Teaching:
    """Teacher options of an arm: what determines a cache besides its episodes.

    Attributes are the options of ``--policy.forcing`` with these names.
    """

    teacher: str
    teacher_checkpoint: str | None = None
    layer: int | None = None
    resolution: int | None = None
    dtype: str | None = None
    cameras: tuple[str, ...] | None = None
    points_from: str | None = None
    points_frame: str = "robot"
    calibration: str | None = None
    token_weights: str | None = None

    def folder(self, fraction: float) -> str:
        """Folder name of the cache for a data fraction."""
        from spatial_forcing.teachers import find_teacher

        says = [find_teacher(self.teacher).slug]
        says += [f"layer{self.layer}"] if self.layer is not None else []
        says += [str(self.resolution)] if self.resolution is not None else []
        says += [self.dtype] if self.dtype is not None else []
        if self.points_from is not None:
            says += ["points", re.sub(r"\W+", "-", self.points_from), self.points_frame]
            says += [Path(self.calibration).stem] if self.calibration is not None else []
        if self.token_weights is not None:
            says += ["weights", re.sub(r"\W+", "-", self.token_weights)]
        return "-".join([*says, f"f{100 * fraction:g}"])


def teachings_of(comparison: Comparison, arm: Arm) -> list[Teaching]:
    """Teacher options of the features stored for each alignment of an arm; none of one online."""
    if not comparison.stored or arm.forcing is None:
        return []
    forcing = policy_of(arm_flags(comparison.flags, arm)).forcing
    return [teaching_of(entry, forcing.cameras) for entry in forcing.entries()]


def teaching_of(alignment: Any, cameras: Iterable[str] | None) -> Teaching:
    """Teacher options of the features stored for an alignment.

    Args:
        alignment: its options, of ``--policy.forcing`` or an entry of its ``alignments``.
        cameras: the data set's, or by their name the policy's; all if None.
    """
    return Teaching(
        teacher=alignment.teacher or TEACHER,
        teacher_checkpoint=alignment.teacher_checkpoint,
        layer=alignment.layer,
        resolution=alignment.resolution,
        dtype=alignment.dtype,
        # A mapping names the data set's cameras first; without one both names are the same.
        cameras=None if cameras is None else tuple(cameras),
        **({} if alignment.points is None else _points(alignment)),
        token_weights=alignment.token_weights,
    )


def _points(alignment: Any) -> dict[str, Any]:
    """What determines the points of an alignment's tokens."""
    return {
        "points_from": alignment.points_from,
        "points_frame": alignment.points_frame or "robot",
        "calibration": alignment.calibration,
    }


def stored_features(comparison: Comparison, out: Path, bars: Progress, device: str) -> dict[str, list[Path]]:
    """Stores the features that runs need and that are not there yet.

    Returns:
        By name of the run, the caches that it reads, one for each alignment; runs without are left out.

    Raises:
        CacheError: the disk is full, or a cache is of something else; what is finished is kept.
    """
    teachings = {arm.name: teachings_of(comparison, arm) for arm in comparison.arms}
    wanted: dict[str, list[Path]] = {}
    made: set[tuple[Teaching, float]] = set()
    for run in comparison.runs():
        for one in teachings[run.arm.name]:
            root = out / "features" / one.folder(run.fraction)
            wanted.setdefault(run.name, []).append(root)
            if (one, run.fraction) not in made:
                made.add((one, run.fraction))
                store(one, comparison, comparison.split.share(run.fraction), root, bars, device)
    return wanted


def store(
    teaching: Teaching,
    comparison: Comparison,
    episodes: Sequence[int],
    root: Path,
    bars: Progress,
    device: str,
) -> None:
    """Extracts and stores the teacher's features of some episodes."""
    from spatial_forcing.cache.extract import Extraction, extract
    from spatial_forcing.cache.spans import spans_of_episodes
    from spatial_forcing.cache.write import Watch
    from spatial_forcing.teachers import load_teacher
    from spatial_forcing.teachers.base import named_dtype

    dataset = dataset_of(comparison)
    check_beside(teaching, dataset)
    bar = bars.add_task(f"frames for {root.name}", total=None)
    teacher = load_teacher(
        teaching.teacher,
        weights=teaching.teacher_checkpoint,
        layer=-1 if teaching.layer is None else teaching.layer,
        resolution=teaching.resolution,
        dtype=named_dtype(teaching.dtype),
        device=device,
    )
    how = Extraction(
        cameras=teaching.cameras,
        codec=CodecOptions("pca-int8"),
        spans=spans_of_episodes(dataset.meta, episodes),
    )
    watch = Watch(lambda plan: bars.update(bar, total=plan.share), lambda n: bars.advance(bar, n))
    extract(dataset.root, teacher, teaching.teacher, root, how, watch=watch)
    bars.update(bar, total=bars.tasks[bar].completed)
    for what, source in beside_of(teaching, dataset, device).items():
        store_beside(what, source, dataset, root, bars)


def check_beside(teaching: Teaching, dataset: Any) -> None:
    """Raises a :class:`SpatialForcingError` early if the points that an arm wants cannot be computed."""
    from spatial_forcing.cache.extract import chosen_cameras
    from spatial_forcing.geometry.stored import checked_sources

    if teaching.points_from is not None:
        calibration = None if teaching.calibration is None else Path(teaching.calibration)
        checked_sources(teaching.points_from, dataset, chosen_cameras(dataset, teaching.cameras), calibration)


def beside_of(teaching: Teaching, dataset: Any, device: str) -> dict[str, Any]:
    """The sources of what an arm reads beside its features, by the name of its folder."""
    from spatial_forcing.cache.extract import chosen_cameras
    from spatial_forcing.cache.layout import POINTS, WEIGHTS
    from spatial_forcing.geometry.stored import point_source
    from spatial_forcing.token_weights.sources import weight_source

    keys, found = chosen_cameras(dataset, teaching.cameras), {}
    if teaching.points_from is not None:
        calibration = None if teaching.calibration is None else Path(teaching.calibration)
        how = (calibration, teaching.points_frame, device)
        found[POINTS] = point_source(teaching.points_from, dataset, keys, *how)
    if teaching.token_weights is not None:
        found[WEIGHTS] = weight_source(teaching.token_weights, dataset, keys, LEAST, device)
    return found


def store_beside(what: str, source: Any, dataset: Any, root: Path, bars: Progress) -> None:
    """Stores points or weights of the tokens beside their features."""
    from spatial_forcing.cache.beside import extract_beside
    from spatial_forcing.cache.write import Watch

    bar = bars.add_task(f"{what} for {root.name}", total=None)
    watch = Watch(lambda plan: bars.update(bar, total=plan.share), lambda n: bars.advance(bar, n))
    extract_beside(what, dataset.root, source, root, watch=watch)
    bars.update(bar, total=bars.tasks[bar].completed)


def dataset_of(comparison: Comparison) -> Any:
    """Opens the data set of the training command, with all of its episodes."""
    from spatial_forcing.datasets import open_dataset
    from spatial_forcing.flags import read_config

    plain = [arm for arm in comparison.arms if arm.forcing is None] or [Arm(PLAIN)]
    dataset = read_config(arm_flags(comparison.flags, plain[0])).dataset
    return open_dataset(Path(dataset.root) if dataset.root else dataset.repo_id)
