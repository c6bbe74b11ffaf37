"""Ways in which files go wrong. Each makes a function (bench, here) -> None for ``Case.prepare``."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

Prepare = Callable[[Any, Path], None]


def labelled(label: str, prepare: Prepare) -> Prepare:
    """What the case's name says of it."""
    prepare.label = label  # type: ignore[attr-defined]
    return prepare


def _labels(steps: tuple[Prepare, ...]) -> str:
    return ", ".join(getattr(step, "label", "") for step in steps)


def copied(name: str, *more: Prepare) -> Prepare:
    """A copy of one of the bench's folders, ``here/<name>``, and then what else is done."""

    def prepare(bench: Any, here: Path) -> None:
        shutil.copytree(getattr(bench, name), here / name, symlinks=True)
        for step in more:
            step(bench, here)

    return labelled(f"{name}: {_labels(more)}" if more else "", prepare)


def cut(name: str, keep: float = 0.5) -> Prepare:
    """Only the first part of a file is left."""

    def prepare(bench: Any, here: Path) -> None:
        path = one(here, name)
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return labelled(f"{keep:.0%} of {name}", prepare)


def holds(name: str, content: str | bytes) -> Prepare:
    """A file holds something else; it is made if it is not there."""

    def prepare(bench: Any, here: Path) -> None:
        path = here / name
        if "*" in name:
            path = one(here, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    return labelled(f"{name} holds {content[:40]!r}", prepare)


def flipped(name: str, at: float = 0.5, bit: int = 7) -> Prepare:
    """One bit of a file is another; the highest makes text no UTF-8."""

    def prepare(bench: Any, here: Path) -> None:
        path = one(here, name)
        content = bytearray(path.read_bytes())
        content[int(len(content) * at)] ^= 1 << bit
        path.write_bytes(content)

    return labelled(f"bit in {name}", prepare)


def without(name: str) -> Prepare:
    """A file, or a folder, is gone."""

    def prepare(bench: Any, here: Path) -> None:
        path = one(here, name)
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return labelled(f"no {name}", prepare)


def changed(name: str, old: str, new: str) -> Prepare:
    """A text file says something else at one place."""

    def prepare(bench: Any, here: Path) -> None:
        path = one(here, name)
        text = path.read_text()
        assert old in text, f"{path} has no {old!r}"
        path.write_text(text.replace(old, new))

    return labelled(f"{old} is {new} in {name}", prepare)


def mode(name: str, rights: int) -> Prepare:
    """A file or folder has these rights; it is made, as a folder, if it is not there."""

    def prepare(bench: Any, here: Path) -> None:
        path = here / name
        if not path.exists():
            path.mkdir(parents=True)
        path.chmod(rights)

    return labelled(f"{name} {rights:o}", prepare)


def both(*steps: Prepare) -> Prepare:
    def prepare(bench: Any, here: Path) -> None:
        for step in steps:
            step(bench, here)

    return labelled(_labels(steps), prepare)


def one(here: Path, name: str) -> Path:
    """The first file of this name or pattern."""
    found = sorted(here.glob(name))
    assert found, f"there is no {name} in {here}"
    return found[0]
