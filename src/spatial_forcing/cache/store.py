"""Reader of stored features: a batch reads only its own frames, and damaged files are errors before use.

Nothing that writes is imported here: reading needs no locks and works on every system.

Shapes: B batch, V views, H W rows and columns, C channels, K stored numbers per token.
"""

import json
import os
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.cache.codec import Codec
from spatial_forcing.cache.layers import folder_of, layer_folder
from spatial_forcing.cache.layout import (
    CODEC,
    COMMAND,
    POINTS,
    STORED,
    WEIGHTS,
    CacheError,
    Source,
    check_file,
    check_there,
    command_of,
    dataset_fingerprint,
    load_codec,
    opened,
    read_manifest,
    shard_name,
)
from spatial_forcing.cache.spans import Spans
from spatial_forcing.features import Features

__all__ = ["CacheError", "FeatureStore", "Source", "dataset_fingerprint"]


class FeatureStore:
    """Reader of the stored features of one layer, by frame index; a ``Target``, usable in place of a teacher.

    Every file's checksum is compared with the manifest's when the file is first touched. Of a cache of
    several layers only the files of this one are.

    Args:
        root: the cache's folder.
        layer: which layer of the teacher, counted from 0, or from the end; None means the only one there.
        pca_targets: read the stored PCA coefficients themselves instead of the tokens they stand for. Their
            directions are orthonormal, so cosines among them are those of the tokens less their mean; targets
            get as narrow as the code.
        standardized: with ``pca_targets``, turn and stretch them so that cosines among them are those of the
            tokens with every channel standardised.
        points: read the 3D points of the tokens, too, which ``spatial-forcing points`` stores beside the
            features.
        weights: read the weights of the tokens, too, which ``spatial-forcing weights`` stores there.

    Raises:
        CacheError: no cache there, an unfinished one, one of another version, a file is missing or damaged,
            it has no such layer or several and none is named, or PCA targets, points or weights are wanted of
            a cache that has none.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        layer: int | None = None,
        pca_targets: bool = False,
        standardized: bool = False,
        points: bool = False,
        weights: bool = False,
    ):
        if not isinstance(root, str | os.PathLike):
            raise CacheError(f"A cache is read from a folder; got {root!r}.")
        if layer is not None and (not isinstance(layer, Integral) or isinstance(layer, bool)):
            raise CacheError(f"A layer is a whole number, negative from the last; got {layer!r}.")
        self.root, self.reads_pca_targets = folder_of(Path(root), layer), pca_targets
        manifest = read_manifest(self.root)
        self.source = Source.from_json(manifest["source"])
        self._rows = Spans(self.source.frames, self.source.spans)
        if self.root != Path(root) and self.root != layer_folder(Path(root), self.source.layer or 0):
            raise CacheError(f"{self.root} holds layer {self.source.layer}: the folder has been renamed.")
        self.check_teacher_options(layer=layer)
        self._sums: dict[str, str] = manifest["sums"]
        self._shard_frames: int = manifest["shard_frames"]
        for name in self._sums:
            check_there(self.root, name)
        check_file(self.root, CODEC, self._sums[CODEC])
        self.codec, said = load_codec(self.root)
        self.codec_record = manifest["codec"]
        if pca_targets and self.codec.kind != "pca-int8":
            raise CacheError(
                f"The cache at {self.root} holds whole tokens ({self.codec.kind}) and no PCA coefficients. "
                f"Read the tokens, or write a compressed cache: {COMMAND} --codec pca-int8."
            )
        self.grid: tuple[int, ...] = tuple(said["grid"])
        self.width = self.codec.components if pca_targets else self.codec.width
        self.hidden: int | None = self.codec.width  # of the projector
        self.name, self.layer = self.source.teacher, self.source.layer
        self.fingerprint, self.licence = self.source.teacher_fingerprint, self.source.teacher_licence
        found = manifest["statistics"]["token"]
        stats = (torch.tensor(found["mean"]), torch.tensor(found["std"]))
        self._turn: tuple[Tensor, Tensor] | None = None
        if pca_targets:
            # They mean nothing without the codec's own directions, which every cache finds anew.
            self.fingerprint += f"-coefficients-{self._sums[CODEC][:8]}"
            if standardized:
                self._turn = turned(self.codec, *stats)
                self.fingerprint += "-standardized"
            stats = (torch.zeros(self.width), torch.ones(self.width))
        self.stats: tuple[Tensor, Tensor] | None = stats
        self._files: dict[int, Any] = {}
        self._pid = os.getpid()
        self.points = self._beside(Path(root), POINTS) if points else None
        self.weights = self._beside(Path(root), WEIGHTS) if weights else None
        for beside in (self.points, self.weights):
            if beside is not None:
                self.fingerprint += f"-{beside.root.name}-{beside.fingerprint}"

    def _beside(self, root: Path, what: str) -> "FeatureStore":
        """The points or weights of the tokens.

        Raises:
            CacheError: there are none, or they are of other frames, cameras or tokens.
        """
        if not (root / what).is_dir():
            raise CacheError(
                f"The cache at {root} has no {what} of its tokens. Store them beside the features: "
                f"spatial-forcing {what} --features {root} --dataset <data set>"
            )
        found = FeatureStore(root / what)
        for of in ("dataset", "cameras", "spans", "frames"):
            if getattr(found.source, of) != getattr(self.source, of):
                raise CacheError(
                    f"The {what} in {found.root} are of another {of} than the features beside them. "
                    f"Remove that folder, and store them again: spatial-forcing {what}"
                )
        if found.grid[:3] != self.grid[:3]:
            raise CacheError(
                f"The {what} in {found.root} are of a grid of {found.grid[1]} x {found.grid[2]} tokens, "
                f"the features of {self.grid[1]} x {self.grid[2]}. Remove that folder, and store them again."
            )
        return found

    @property
    def image_sizes(self) -> list[tuple[int, int]] | None:
        """Height and width of each view's images, for hosts that pad; None if the cache does not say."""
        return list(self.source.pictures) or None

    def __call__(self, asked: Tensor, /) -> Features:
        """Reads features of frames by index; see :meth:`read`."""
        return self.read(asked)

    def layers_of(self, asked: Tensor, /, layers: tuple[int, ...]) -> dict[int, Features]:
        """Features of frames by layer, which must be the store's own.

        Raises:
            CacheError: another layer is asked for.
        """
        for layer in layers:
            self.check_teacher_options(layer=layer)
        return dict.fromkeys(layers, self.read(asked))

    def fingerprint_of(self, layer: int) -> str:
        """The fingerprint of a layer, which must be the store's own.

        Raises:
            CacheError: another layer is asked for.
        """
        self.check_teacher_options(layer=layer)
        return self.fingerprint

    def read(self, index_B: Tensor) -> Features:
        """Features of the frames with these data-set indices, on the device of ``index_B``."""
        whole = isinstance(index_B, Tensor) and not (
            index_B.is_floating_point() or index_B.dtype == torch.bool
        )
        if not whole or index_B.ndim != 1:
            raise CacheError(f"Frames are named by a tensor of whole numbers, one a sample; got {index_B!r}.")
        stored = self.read_stored(index_B.tolist())
        features = self.decoded({k: v.to(index_B.device, non_blocking=True) for k, v in stored.items()})
        if self.points is not None:
            points_BVHW4 = self.points.read(index_B).tokens_BVHWC.float()
            known_BVHW1 = points_BVHW4[..., 3:] > 0
            features = features.with_points(torch.where(known_BVHW1, points_BVHW4[..., :3], torch.nan))
        if self.weights is not None:
            features = features.with_weights(self.weights.read(index_B).tokens_BVHWC[..., 0].float())
        return features

    def decoded(self, stored: dict[str, Tensor]) -> Features:
        """Decodes what :meth:`read_stored` returned to features, on its device."""
        self.codec = self.codec.to(stored["codes"].device)
        if self.reads_pca_targets:
            tokens = self.codec.coefficients(stored)
            if self._turn is not None:
                turn_KK, shift_K = (part.to(tokens.device) for part in self._turn)
                tokens = tokens @ turn_KK + shift_K
        else:
            # Plain floats are carried as they are stored: half precision need not become twice the memory.
            tokens = stored["codes"] if self.codec.kind != "pca-int8" else self.codec.decode(stored)
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool, device=tokens.device))

    def read_stored(self, index: list[int]) -> dict[str, Tensor]:
        """Encoded features of some frames: ``codes`` (B, V, H, W, K) and ``scale`` (B, V, H, W)."""
        names = ("codes", "scale") if self.codec.kind == "pca-int8" else ("codes",)
        rows: dict[str, list[Tensor]] = {name: [] for name in names}
        for i in index:
            number, at = divmod(self._row_of(i), self._shard_frames)
            file = self._file(number)
            for name in names:
                rows[name].append(file.get_slice(name)[at])
        return {name: torch.stack(some) for name, some in rows.items()}

    def _row_of(self, frame: int) -> int:
        if (row := self._rows.row_of(frame)) is not None:
            return row
        if self.source.spans is None:
            raise CacheError(
                f"Frame {frame} was asked for, but the cache at {self.root} has {self.source.frames} "
                "frames: it is of another data set."
            )
        raise CacheError(
            f"Frame {frame} was asked for, and the cache at {self.root} is of some episodes of the data set, "
            "which do not have it: train on those alone (--dataset.episodes), or write a cache with more "
            "(--episodes)."
        )

    def _file(self, number: int) -> Any:
        if self._pid != os.getpid():  # a forked worker maps the files anew
            self._files, self._pid = {}, os.getpid()
        if number not in self._files:
            name = shard_name(number)
            check_file(self.root, name, self._sums[name])
            self._files[number] = opened(self.root / name)
        return self._files[number]

    def check(self, *, teacher: str | None, cameras: Iterable[str], dataset_root: Path | None = None) -> None:
        """Raises :class:`CacheError` unless these are features of ``teacher`` for ``cameras``, in this order
        if it matters to the teacher, and of the data set at ``dataset_root`` if one is given."""
        cameras = tuple(cameras)
        if teacher is not None and self.source.teacher != teacher:
            raise CacheError(
                f"The cache at {self.root} is of teacher {self.source.teacher!r}, not {teacher!r}."
            )
        reordered = not self.source.ordered and sorted(self.source.cameras) == sorted(cameras)
        if self.source.cameras != cameras and not reordered:
            order = " in the same order, as the teacher attends across views"
            how = order if self.source.ordered else ""
            raise CacheError(
                f"The cache at {self.root} has the cameras {', '.join(self.source.cameras)}; those to align "
                f"are {', '.join(cameras)}. They must be the same{how}. To align the cache's cameras and no "
                "others: "
                f"--policy.forcing.cameras='{json.dumps(self.source.cameras)}'; where --rename_map renames "
                """them, its entries for them: --policy.forcing.cameras='{"<data set's>": "<policy's>"}'."""
            )
        if dataset_root is not None and (found := dataset_fingerprint(dataset_root)) != self.source.dataset:
            raise CacheError(
                f"The cache at {self.root} is of another data set than {dataset_root}, or that has changed "
                f"since (fingerprint {self.source.dataset} then, {found} now). Name the cache of this data "
                f"set, or write one into another folder: {COMMAND} --dataset {dataset_root} --teacher "
                f"{self.source.teacher} --out <folder>"
            )

    def check_teacher_options(
        self, *, layer: int | None = None, resolution: int | None = None, dtype: str | None = None
    ) -> None:
        """Raises :class:`CacheError` unless the teacher had these options; None agrees with everything."""
        of = self.source
        last = None if of.layer is None or of.layers is None else of.layer - of.layers
        square = (resolution, resolution)
        for name, wanted, recorded, agrees in (
            ("layer", layer, of.layer, layer in (of.layer, last)),
            ("resolution", resolution, of.resolution, square == of.resolution),
            ("dtype", dtype, of.dtype, dtype == of.dtype),
        ):
            if wanted is not None and not agrees:
                said = "does not say which" if recorded is None else f"was written with {name} {recorded}"
                raise CacheError(
                    f"The cache at {self.root} {said}, and {name} {wanted} is asked for. Leave the option "
                    f"out to train from this cache, or write another: {COMMAND} --{name} {wanted}."
                )

    def check_points(self, source: str | None, frame: str | None) -> None:
        """Raises :class:`CacheError` unless these are points from this depth in this frame, of which some are
        known; None agrees with everything."""
        said = self.source.teacher
        if self.stats is not None and not self.stats[0][3]:
            raise CacheError(
                f"{self.root} holds {said}, and of no token is the point known: its depth was unknown, in "
                f"the wrong unit or beyond 3 m everywhere. Delete {self.root} (the features stay) and store "
                f"others: {command_of(self.root)}"
            )
        for option, wanted, agrees in (
            ("points_from", source, source is None or are_from(said, source)),
            ("points_frame", frame, frame is None or said.endswith(f", {frame} frame")),
        ):
            if not agrees:
                raise CacheError(
                    f"{self.root} holds {said}, and {option} {wanted} is asked for. Leave the option out; or "
                    f"delete {self.root} (the features stay) and store others: {command_of(self.root)}"
                )

    def check_weights(self, source: str) -> None:
        """Raises :class:`CacheError` unless these are weights from this source, or any are asked for."""
        if source not in (STORED, self.source.teacher):
            raise CacheError(
                f"{self.root} holds weights of {self.source.teacher}, and {source} is asked for. Say "
                f"token_weights={STORED}; or delete {self.root} (the features stay) and store others: "
                f"{command_of(self.root)}"
            )


def are_from(said: str, source: str) -> bool:
    """Whether points, by their name, are from a depth source: "recorded", or "pseudo:<model>"."""
    depth = said.removeprefix("points of ")
    kind, _, model = source.partition(":")
    if kind == "recorded":
        return depth.startswith("recorded")
    # A model in a folder or on the Hub goes by the last part of its name.
    return any(depth.startswith(f"pseudo: {name},") for name in (model, Path(model).name))


def turned(codec: Codec, mean_C: Tensor, std_C: Tensor) -> tuple[Tensor, Tensor]:
    """(turn_KK, shift_K) such that code @ turn + shift has the geometry of standardised tokens.

    A token is m + W c, standardised (m - mean) / std + diag(1 / std) W c. With diag(1 / std) W = Q R and Q
    orthonormal, R c plus the shift's part along Q has the same lengths and angles in K numbers.
    """
    assert codec.basis_CK is not None
    assert codec.mean_C is not None
    std_C = std_C.double().clamp(min=1e-6)
    q_CK, r_KK = torch.linalg.qr(codec.basis_CK.double() / std_C[:, None])
    shift_K = q_CK.mT @ ((codec.mean_C.double() - mean_C.double()) / std_C)
    return r_KK.mT.float(), shift_K.float()
