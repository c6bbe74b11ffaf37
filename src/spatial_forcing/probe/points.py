"""Position probe: 3D positions (end effector, object) read linearly from all tokens of a frame.

    y = f W + b,    f: each view averaged on 4 x 4 cells, every cell projected to a few numbers

by a fixed random orthogonal map, the same for every source of that width; W by ridge regression, its
strength chosen on held-back training episodes, as for depth. Positions are columns of the data set, in the
frame that it keeps them in.

Shapes: F frames, V views, H W rows and columns of tokens, C channels, 3 coordinates, D numbers of a frame.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.moments import StreamedRidge
from spatial_forcing.probe.visual import VisualTokens

CELLS, NUMBERS = 4, 768
EMBEDDED = {
    "end effector": ("observation.state", (0, 1, 2)),
    "object": ("observation.environment_state", (0, 1, 2)),
    "goal": ("observation.environment_state", (3, 4, 5)),
}
_COLUMN = re.compile(r"([^:]+):(\d+),(\d+),(\d+)")
Columns = dict[str, tuple[str, tuple[int, int, int]]]


def columns_of(words: Sequence[str], dataset: Any) -> Columns:
    """Parses which columns of a data set are positions, by name.

    Args:
        words: ``"hand=observation.state:0,1,2"``; of the embedded world's demonstrations end effector,
            object and goal if there are none.

    Raises:
        ProbeError: a word is not written so, or there are no such columns.
    """
    if not words:
        names = dataset.meta.features.get("observation.environment_state", {}).get("names") or []
        return dict(EMBEDDED) if "goal_x" in names else {}
    found: Columns = {}
    for word in words:
        name, _, where = word.partition("=")
        match = _COLUMN.fullmatch(where)
        if not name or match is None:
            raise ProbeError(
                f"A position is given as name=column:x,y,z, numbers of elements from 0, got {word!r}. "
                "For example: --positions hand=observation.state:0,1,2"
            )
        key, elements = match[1], (int(match[2]), int(match[3]), int(match[4]))
        if key not in dataset.meta.features:
            raise UnknownNameError("column of the data set", key, dataset.meta.features)
        size = int(dataset.meta.features[key]["shape"][0])
        if max(elements) >= size:
            raise ProbeError(f"{key} has {size} elements, from 0; got {word!r}.")
        found[name] = (key, elements)
    return found


def positions_in(batch: Mapping[str, Any], columns: Columns) -> Tensor:
    """Positions of some frames side by side, (F, 3 x number of columns), in metres."""
    found = []
    for key, elements in columns.values():
        values = batch[key][:, -1] if batch[key].ndim == 3 else batch[key]
        found.append(values[:, list(elements)].float())
    return torch.cat(found, 1)


def summary_of(tokens: VisualTokens) -> Tensor:
    """Pooled and projected tokens f of each frame, (F, D)."""
    x_FVHWC = tokens.tokens_FVHWC
    V, C = x_FVHWC.shape[1], x_FVHWC.shape[-1]
    pooled = F.adaptive_avg_pool2d(x_FVHWC.flatten(0, 1).permute(0, 3, 1, 2), CELLS)  # (F V, C, 4, 4)
    few = max(1, min(C, NUMBERS // (V * CELLS * CELLS)))
    projected = torch.einsum("ichw,cd->ihwd", pooled.float(), _projection(C, few))
    return projected.reshape(len(x_FVHWC), -1)


def _projection(C: int, few: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(C, few, generator=draw)).Q


class PointProbe:
    """Linear position probe, fitted batch by batch."""

    def __init__(self) -> None:
        self._fitting = StreamedRidge()
        self._head: tuple[Tensor, Tensor] | None = None

    @property
    def started(self) -> bool:
        """Whether any frames were added."""
        return self._head is not None or bool(self._fitting.bytes)

    def add(self, tokens: VisualTokens, positions_F3: Tensor, held_F: Tensor) -> None:
        """Adds a batch of frames."""
        self._fitting.add(summary_of(tokens)[:, None], positions_F3[:, None], held_F)

    def fit(self) -> None:
        """Fits the probe; raises :class:`ProbeError` if there was too little data."""
        weight_CK, offset_PK, _ = self._fitting.head()
        self._head = (weight_CK, offset_PK[0])

    def errors_cm(self, tokens: VisualTokens, positions_F3: Tensor) -> Tensor:
        """Prediction errors of each frame and position in centimetres, (F, number of positions)."""
        assert self._head is not None
        weight_CK, offset_K = self._head
        read = summary_of(tokens).double() @ weight_CK + offset_K
        return 100 * (read - positions_F3.double()).unflatten(1, (-1, 3)).norm(dim=-1)
