"""LIBERO's installation: packages, configuration file and assets, and an import that never waits for input.

The first import of LIBERO asks on the console for a folder unless its configuration file is there; a job
without a console hangs or dies then. ``load_libero`` looks first, and refuses with what to do.
"""

import contextlib
import importlib.util
import io
import logging
import os
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType

from spatial_forcing.errors import DISTRIBUTION, SpatialForcingError
from spatial_forcing.files import check_folder, made_folder, write_text

# Distributions and what they are imported as; LeRobot's LIBERO environment, and the expert, need no more.
PACKAGES = {"hf-libero": "libero", "robosuite": "robosuite", "bddl": "bddl", "numba": "numba", "h5py": "h5py"}
PINS = (
    *("hf-libero==0.1.4", "robosuite==1.4.0", "bddl==1.0.1", "numba==0.68.1"),
    *("llvmlite==0.50.0", "h5py==3.16.0", "easydict==1.14", "future==1.0.0"),
)
"""What is beyond the extra `sim`, with the versions that were tried."""
INSTALL = f"pip install --no-deps {' '.join(PINS)}"
DRAWS_DARKER = (3, 3, 2)
"""The last MuJoCo that draws LIBERO's floors as its benchmark does; later ones draw them darker."""
CONFIG_PATH = "LIBERO_CONFIG_PATH"
WRITE_CONFIG = "spatial-forcing libero check --write-config"
GET_ASSETS = "hf download lerobot/libero-assets --repo-type dataset --local-dir ~/.cache/libero/assets"
"""What hf-libero does by itself when it makes its first scene and has a network."""


class LiberoError(SpatialForcingError):
    """LIBERO is not installed, or not whole."""


def check_importable() -> None:
    """Raises :class:`LiberoError` unless LIBERO's import works and asks nothing: packages, configuration."""
    libero_folder()
    absent = missing_packages()
    if absent:
        raise LiberoError(f"LIBERO needs {', '.join(absent)}. Install with: {INSTALL}")
    read_config()


def check_installed() -> None:
    """Raises :class:`LiberoError` unless LIBERO can be used: packages, configuration, assets."""
    check_importable()
    assets_folder()


def missing_packages() -> list[str]:
    """Distributions that LIBERO needs and that cannot be found."""
    return [name for name, module in PACKAGES.items() if importlib.util.find_spec(module) is None]


def libero_folder() -> Path:
    """The folder of the package ``libero.libero``, found without importing it.

    Raises:
        LiberoError: LIBERO is not installed.
    """
    found = importlib.util.find_spec("libero")
    for parent in (found.submodule_search_locations or ()) if found else ():
        if (Path(parent) / "libero" / "benchmark").is_dir():
            return Path(parent) / "libero"
    raise LiberoError(
        f'LIBERO is not installed. Install it with: pip install "{DISTRIBUTION}[libero]"; or, without the '
        f'packages that nothing here uses: pip install "{DISTRIBUTION}[sim]" && {INSTALL} (docs/libero.md).'
    )


def config_file() -> Path:
    """LIBERO's configuration file: in ``$LIBERO_CONFIG_PATH``, else in ``~/.libero``."""
    return Path(os.environ.get(CONFIG_PATH) or Path.home() / ".libero") / "config.yaml"


def read_config() -> dict[str, str]:
    """LIBERO's configuration: folders by name.

    Raises:
        LiberoError: it is missing, cannot be read, or a folder in it is not there.
    """
    import yaml

    path = config_file()
    advice = f"Write one: {WRITE_CONFIG}, or name another folder in {CONFIG_PATH}."
    if not path.is_file():
        raise LiberoError(
            f"LIBERO has no configuration file {path}: its first import would ask for one on the console. "
            f"{advice}"
        )
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise LiberoError(f"{path} cannot be read: {error}. Remove it. {advice}") from error
    for name in ("bddl_files", "init_states"):
        folder = found.get(name) if isinstance(found, dict) else None
        if not isinstance(folder, str) or not Path(folder).is_dir():
            raise LiberoError(
                f"{path} says that {name} are in {folder!r}, which is no folder. Delete the file, then write "
                f"another: {WRITE_CONFIG}"
            )
    return found


def write_config() -> Path:
    """Writes the configuration that LIBERO itself would write, with the folders of the installed package.

    A file that is there stays as it is.

    Raises:
        LiberoError: LIBERO is not installed.
        SpatialForcingError: the file cannot be written.
    """
    root, path = libero_folder(), config_file()
    if path.is_file():
        return path
    folders = {
        "benchmark_root": root,
        "bddl_files": root / "bddl_files",
        "init_states": root / "init_files",
        "datasets": root.parent / "datasets",
        "assets": root / "assets",
    }
    check_folder(path.parent, LiberoError)
    with made_folder(path.parent, LiberoError):
        return write_text(path, "".join(f"{name}: {folder}\n" for name, folder in folders.items()))


def assets_folder() -> Path:
    """The folder of LIBERO's assets (meshes, textures): in the package, else where hf-libero puts them.

    Raises:
        LiberoError: it is not there; says how to get it.
    """
    local = libero_folder() / "assets"  # the configuration's key `assets` is not read by LIBERO
    fetched = Path.home() / ".cache" / "libero" / "assets"
    for folder in (local, fetched):
        if folder.is_dir() and any(folder.glob("*/*")):
            return folder
    raise LiberoError(
        f"LIBERO's assets are not there. Get them from the Hub: {GET_ASSETS}. Or put or link their folder to "
        f"{local}; such a link is gone when hf-libero is installed anew."
    )


def load_libero() -> ModuleType:
    """Imports LIBERO's environments, quietly, with a renderer that works here.

    Returns:
        The module ``libero.libero.envs.env_wrapper``.

    Raises:
        LiberoError: a package, the configuration or the assets are missing.
        RenderingError: this machine cannot render.
    """
    from spatial_forcing.sim.render import load_mujoco

    check_installed()
    load_mujoco()  # first: robosuite would take EGL where none is chosen
    with quiet():
        import libero.libero.envs.env_wrapper as wrapper
    return wrapper


def not_made(what: str, suite: str, error: Exception) -> LiberoError:
    """The error for a scene that LIBERO cannot make, with what to do: most often a file of it is missing."""
    said = str(error).rstrip(".")
    return LiberoError(
        f"The scene of {what} cannot be made: {said}. See what is missing: spatial-forcing libero check "
        f"--suites {suite}"
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Context in which LIBERO and robosuite print nothing, as long as nothing goes wrong."""
    logging.getLogger("robosuite_logs").setLevel(logging.ERROR)
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def installed_versions() -> dict[str, str]:
    """Versions of what a LIBERO episode depends on, of those that are installed."""
    found = {}
    for name in ("mujoco", "robosuite", "hf-libero", "bddl", "numpy", "lerobot"):
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def draws_darker(mujoco: str) -> bool:
    """Whether a version of MuJoCo draws LIBERO's floors darker than its benchmark."""
    return tuple(int(part) for part in mujoco.split(".")[:3] if part.isdigit()) > DRAWS_DARKER
