"""Columns of a data set that hold the end effector's pose or a camera's matrices.

Shapes: B batch, T a history of observations, n numbers of a column.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.geometry.cameras import CalibrationError

# Shapes of a column that holds a matrix, row by row.
INTRINSICS, EXTRINSICS = ((9,), (3, 3)), ((12,), (3, 4), (16,), (4, 4))
Shapes = Sequence[tuple[int, ...]]
# Of LeRobot's types of a feature.
NO_NUMBERS = ("image", "video", "string")


@dataclass(frozen=True)
class Column:
    """A column of a data set, or some of its numbers.

    Attributes:
        name: its key.
        indices: of its numbers, from 0; all of them if None.
    """

    name: str
    indices: tuple[int, ...] | None = None

    def numbers(self, batch: Mapping[str, Any]) -> Tensor:
        """The numbers of a raw batch, (B, n) float64; of a history (B, T, n) the last.

        Raises:
            CalibrationError: the batch lacks the column.
        """
        numbers = self._of(batch)
        numbers_Bn = numbers[:, -1] if numbers.ndim == 3 else numbers
        return numbers_Bn if self.indices is None else numbers_Bn[:, list(self.indices)]

    def matrices(self, batch: Mapping[str, Any], shapes: Shapes) -> Tensor:
        """The matrices of a raw batch, (B, 3, 3) or (B, 3, 4) float64; of a history the last.

        Args:
            shapes: ``INTRINSICS`` or ``EXTRINSICS``, of which the column has one.

        Raises:
            CalibrationError: the batch lacks the column, or a 4 x 4 matrix ends otherwise than 0, 0, 0, 1.
        """
        numbers = self._of(batch)
        if (numbers.shape[-1],) not in shapes:  # not row by row, but as a matrix
            numbers = numbers.flatten(-2)
        numbers_Bn = numbers[:, -1] if numbers.ndim == 3 else numbers
        matrix_Brc = numbers_Bn.unflatten(-1, (-1, 3 if shapes is INTRINSICS else 4))
        last_B4 = matrix_Brc[:, 3:].flatten(1)  # of 4 x 4
        if last_B4.numel() and not torch.allclose(last_B4, last_B4.new_tensor([0.0, 0.0, 0.0, 1.0])):
            raise CalibrationError(
                f"The column {self.name} is to hold [R | t] row by row, with the last row 0, 0, 0, 1 if "
                f"it is 4 x 4. A last row is {last_B4[0].tolist()}: perhaps it is stored column by column."
            )
        return matrix_Brc[:, :3]

    def check_numbers(self, meta: Any, count: int) -> None:
        """Raises :class:`CalibrationError` unless a data set has the column, with ``count`` such numbers."""
        shape = self._shape(meta)
        if len(shape) != 1 or max(self.indices or (0,)) >= shape[0]:
            raise CalibrationError(
                f"The column {self.name} has {_times(shape)} numbers, and those of indices "
                f"{list(self.indices or range(count))}, from 0, are asked for. Correct the indices."
            )
        if self.indices is None and shape[0] != count:
            raise CalibrationError(
                f"The column {self.name} is to have {count} numbers and has {shape[0]}. Say which with "
                "indices: [...], from 0."
            )

    def check_matrices(self, meta: Any, shapes: Shapes) -> None:
        """Raises :class:`CalibrationError` unless a data set has the column, of such a shape."""
        shape = self._shape(meta)
        if shape not in shapes:
            expected = ", ".join(_times(one) for one in shapes)
            raise CalibrationError(
                f"The column {self.name} is to hold a matrix of {expected} numbers; it has {_times(shape)}. "
                "Name the right column."
            )

    def _of(self, batch: Mapping[str, Any]) -> Tensor:
        if self.name not in batch:
            raise CalibrationError(f"{UnknownNameError('column of the batch', self.name, batch)}")
        return batch[self.name].double()

    def _shape(self, meta: Any) -> tuple[int, ...]:
        if self.name not in meta.features:
            numbers = [name for name, one in meta.features.items() if one.get("dtype") not in NO_NUMBERS]
            raise CalibrationError(f"{UnknownNameError('column of the data set', self.name, numbers)}")
        return tuple(meta.features[self.name]["shape"])


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
