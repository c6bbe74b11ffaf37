"""Strict reading of weights: checks every name and shape, loads only the wanted tensors into memory."""

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from zipfile import is_zipfile

import torch
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError

SHOWN = 4  # names listed in an error before "and N more"
FOLDER_FILES = ("model.safetensors", "model.pt")

Shapes = Mapping[str, tuple[int, ...]]


class WeightsError(SpatialForcingError):
    """A file of weights cannot be read, or does not fit the model."""


class Checkpoint:
    """A checkpoint file: `.safetensors`, or a PyTorch file with a flat state dict (weights_only).

    Args:
        path: the file, or a folder that holds `model.safetensors` or `model.pt`.

    Raises:
        WeightsError: if there is no such file, or it is neither of the two formats.
    """

    def __init__(self, path: str | Path):
        self.path = _file(Path(path))
        if self.path.suffix == ".safetensors":
            self.metadata, self.shapes = self._open_safetensors()
        else:
            self.metadata, self.shapes = {}, {k: tuple(v.shape) for k, v in self._state_dict.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Reads tensors by name, on the CPU, in their stored dtype."""
        if self.path.suffix != ".safetensors":
            return {name: self._state_dict[name] for name in names}
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            return {name: file.get_tensor(name) for name in names}

    def _open_safetensors(self) -> tuple[dict[str, str], Shapes]:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self.path, "pt") as file:
                names = file.keys()
                return file.metadata() or {}, {k: tuple(file.get_slice(k).get_shape()) for k in names}
        except SafetensorError as error:
            raise WeightsError(f"{self.path} is not a readable safetensors file: {error}") from error

    @cached_property
    def _state_dict(self) -> dict[str, Tensor]:
        if not is_zipfile(self.path):
            raise WeightsError(
                f"{self.path} is not a PyTorch file of plain tensors: it is not one of torch.save."
            )
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # many kinds: not a zip file, refused pickles, cut-off files
            raise WeightsError(
                f"{self.path} is not a PyTorch file of plain tensors: {_refusal(error)}"
            ) from error
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise WeightsError(f"{self.path} does not hold a flat state dict (names to tensors).")
        return state


def _refusal(error: Exception) -> str:
    """Why torch did not read a file, without its advice to let the file run code."""
    text = str(error)
    if (found := re.search(r"Unsupported \w+: GLOBAL (\S+)", text)) is not None:
        return f"it holds {found[1]}, which is no tensor, and was not unpickled."
    told = text.partition("WeightsUnpickler error:")[2] or text
    return (told.strip().splitlines() or [type(error).__name__])[0]


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise WeightsError(f"No weights at {path}: there is no such file or folder.")
    for name in FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    found = sorted(p.name for p in path.iterdir())
    raise WeightsError(
        f"No weights in the folder {path}: expected {' or '.join(FOLDER_FILES)}, "
        f"found {_some(found) or 'nothing'}."
    )


class Differences(NamedTuple):
    """Differences between the tensors in a file and those of a model: names, or names with both shapes."""

    missing: list[str]
    foreign: list[str]
    misshaped: list[str]

    def __str__(self) -> str:
        kinds = zip(("missing", "not known", "of another shape"), self, strict=True)
        return "; ".join(f"{len(names)} {what}: {_some(names)}" for what, names in kinds if names)


def differences(found: Shapes, expected: Shapes, ignored: Iterable[str] = ()) -> Differences:
    """Compares the tensors in a file with those of a model, name by name and shape by shape.

    Args:
        found: shapes in the file.
        expected: shapes in the model.
        ignored: prefixes of names that may be in the file but are not wanted (known modules not built).
    """
    prefixes = tuple(ignored)
    return Differences(
        sorted(expected.keys() - found.keys()),
        sorted(k for k in found.keys() - expected.keys() if not k.startswith(prefixes)),
        sorted(
            f"{k} (expected {tuple(expected[k])}, found {tuple(found[k])})"
            for k in expected.keys() & found.keys()
            if tuple(expected[k]) != tuple(found[k])
        ),
    )


def check_names(found: Shapes, expected: Shapes, source: object, ignored: Iterable[str] = ()) -> None:
    """Raises `WeightsError` unless `found` is `expected`; the arguments are those of `differences`.

    Args:
        source: where the weights came from, for the message.
    """
    if any(problems := differences(found, expected, ignored)):
        raise WeightsError(
            f"The weights in {source} do not fit the model "
            f"({len(expected)} tensors expected, {len(found)} found). {problems}."
        )


class Blank[M: nn.Module](NamedTuple):
    """Model on the meta device whose weights are still to be loaded, and the names they have in a file.

    Attributes:
        model: takes every tensor of its state dict from the file.
        ignored: prefixes of names that may be in the file but are not wanted (known modules not built).
        prefix: of all names in the file.
    """

    model: M
    ignored: tuple[str, ...] = ()
    prefix: str = ""

    @property
    def expected(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the tensors to be in the file."""
        return {f"{self.prefix}{name}": tuple(t.shape) for name, t in self.model.state_dict().items()}

    def differences(self, found: Shapes) -> Differences:
        """Compares a file with the model."""
        return differences(found, self.expected, self.not_wanted)

    @property
    def not_wanted(self) -> list[str]:
        """Prefixes of names in the file that are not loaded."""
        return [f"{self.prefix}{name}" for name in self.ignored]


def load_strictly(blank: Blank, checkpoint: Checkpoint) -> None:
    """Loads the weights of a checkpoint into a model, in their stored dtype.

    Raises:
        WeightsError: a tensor is missing, unknown or of another shape.
    """
    check_names(checkpoint.shapes, expected := blank.expected, checkpoint.path, blank.not_wanted)
    state = {name.removeprefix(blank.prefix): tensor for name, tensor in checkpoint.read(expected).items()}
    blank.model.load_state_dict(state, assign=True)


def _some(names: list[str]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
