"""The files that a suite's scenes are made of, and whether they are there and whole.

A scene's file (BDDL) names its problem and the kinds of its objects and fixtures; a kind has a file of that
name among the assets (XML), which names meshes and textures. The rest is looked up in the files: nothing of
LIBERO is imported.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

from spatial_forcing.files import checksum
from spatial_forcing.libero.suites import Task

_TEXTURES = {
    "light-gray": "light-gray-floor-tile.png",
    "wood-plank": "seamless_wood_planks_floor.png",
    "gray-ceramic": "gray_ceramic_tile.png",
    "light-gray-plaster": "light-gray-plaster.png",
    "yellow-linen": "yellow_linen_wall_texture.png",
}


class _Scene(NamedTuple):
    """The surroundings of a problem: a file, and textures of floor and wall in place of those in it."""

    file: str
    floor: str
    wall: str


_SCENES = {
    "libero_tabletop_manipulation": _Scene("libero_tabletop", "light-gray", "light-gray-plaster"),
    "libero_floor_manipulation": _Scene("libero_floor", "light-gray", "light-gray-plaster"),
    "libero_study_tabletop_manipulation": _Scene("libero_study", "light-gray", "light-gray-plaster"),
    "libero_coffee_table_manipulation": _Scene("libero_coffee_table", "wood-plank", "light-gray-plaster"),
    "libero_living_room_tabletop_manipulation": _Scene(
        "libero_living_room_tabletop", "wood-plank", "light-gray-plaster"
    ),
    "libero_kitchen_tabletop_manipulation": _Scene("libero_kitchen_tabletop", "gray-ceramic", "yellow-linen"),
}
_RESTYLED = {"texplane": "floor", "tex-wall": "wall"}  # textures of a scene's file that are replaced
_PART_OF_SCENE = re.compile(r"(.*_)?(table|floor)")  # fixtures without a file of their own


def files_of(tasks: Iterable[Task], assets: Path) -> set[Path]:
    """The asset files of some tasks' scenes, whether or not they are there.

    Args:
        tasks: whose BDDL files are there.
        assets: the folder of the assets.
    """
    by_kind = {path.stem: path for path in sorted(assets.rglob("*.xml"))}
    texts = [task.bddl.read_text(encoding="utf-8") for task in tasks]
    kinds = {kind for text in texts for kind in _kinds(text) if not _PART_OF_SCENE.fullmatch(kind)}
    found = set()
    for kind in kinds:
        path = by_kind.get(kind, assets / f"{kind}.xml")
        found |= {path, *_referenced(path)}
    for scene in {_SCENES[problem] for text in texts for problem in _problem(text)}:
        path = assets / "scenes" / f"{scene.file}_base_style.xml"
        found |= {path, *_referenced(path, scene)}
    return found


def fault_of(path: Path) -> str | None:
    """What is wrong with an asset file; None if it is there and whole, as far as its own sizes tell."""
    if not path.is_file():
        return "is missing"
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(84)
        file.seek(max(0, size - 12))
        tail = file.read()
    if head.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file: run git lfs pull where it comes from"
    return _FAULTS.get(path.suffix, lambda *_: None if size else "is empty")(path, size, head, tail)


def fingerprint(paths: Iterable[Path], assets: Path) -> str:
    """A hash of the content of asset files: 16 hexadecimal digits."""
    lines = sorted(f"{path.relative_to(assets).as_posix()} {checksum(path)}" for path in paths)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def _kinds(bddl: str) -> Iterator[str]:
    """The kinds of fixtures and objects that a scene has."""
    for part in re.findall(r"\(:(?:fixtures|objects)(.*?)\)", bddl, re.DOTALL):
        yield from re.findall(r"-\s*(\w+)", part)


def _problem(bddl: str) -> list[str]:
    return [name.lower() for name in re.findall(r"\(problem\s+(\w+)\)", bddl) if name.lower() in _SCENES]


def _referenced(path: Path, scene: _Scene | None = None) -> Iterator[Path]:
    """Files that an XML file names; none if it cannot be read, which ``fault_of`` says."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError):
        return
    named = set()
    for element in root.iter():
        name, same = element.get("file"), (element.tag, element.get("name"))
        if name is None or same in named:  # robosuite drops the second of a name; LIBERO's stove has one
            continue
        named.add(same)
        style = _RESTYLED.get(element.get("name", ""))
        if scene is not None and style is not None:
            name = f"../textures/{_TEXTURES[getattr(scene, style)]}"
        yield Path(os.path.normpath(path.parent / name))


# ---- formats: what they say of their own size --------------------------------------------------------------


def _msh_fault(path: Path, size: int, head: bytes, tail: bytes) -> str | None:
    """MuJoCo's meshes: numbers of vertices, normals, texture coordinates and faces come first."""
    if size < 16:
        return "is cut off"
    vertices, normals, texture, faces = (int.from_bytes(head[i : i + 4], "little") for i in (0, 4, 8, 12))
    whole = 16 + 4 * (3 * vertices + 3 * normals + 2 * texture + 3 * faces)
    return None if size == whole else f"is cut off or no mesh: {size} bytes, and it says {whole}"


def _stl_fault(path: Path, size: int, head: bytes, tail: bytes) -> str | None:
    whole = 84 + 50 * int.from_bytes(head[80:84], "little")
    return None if size == whole else f"is cut off or no binary STL: {size} bytes, and it says {whole}"


def _png_fault(path: Path, size: int, head: bytes, tail: bytes) -> str | None:
    if not head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "is no PNG image"
    return None if tail[4:8] == b"IEND" else "is cut off"


def _xml_fault(path: Path, size: int, head: bytes, tail: bytes) -> str | None:
    try:
        ElementTree.parse(path)
    except ElementTree.ParseError as error:
        return f"is no XML: {error}"
    return None


_FAULTS = {".msh": _msh_fault, ".stl": _stl_fault, ".png": _png_fault, ".xml": _xml_fault}
