"""Software rendering of images and depth from MuJoCo, one pass for both.

H rows, W columns. A `Renderer` owns a GL context with the meshes and textures of one compiled model; any copy
of that model, with any data, is drawn with it, so that many worlds of one task share one renderer.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.sim.camera import Camera

CLIP_NEAR, CLIP_FAR = 0.02, 12.0
"""Clipping planes, metres; the floor ends within `CLIP_FAR`."""


BACKENDS = "Set MUJOCO_GL to osmesa (no GPU), egl (GPU, no display) or glfw (display)."


class RenderingError(SpatialForcingError, RuntimeError):
    """Images cannot be rendered on this machine as it is set up."""


def load_mujoco() -> ModuleType:
    """Imports mujoco with a GL backend that works here: OSMesa if none is chosen and there is no display.

    Raises:
        MissingDependencyError: mujoco is not installed.
        RenderingError: the GL library of the backend is not installed.
    """
    headless = not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    if sys.platform.startswith("linux") and headless and not os.environ.get("MUJOCO_GL"):
        if "mujoco" in sys.modules:
            raise RenderingError(
                "mujoco was imported before a software renderer could be chosen, and there is no display. "
                "Set MUJOCO_GL=osmesa (or egl) before Python starts."
            )
        os.environ["MUJOCO_GL"] = "osmesa"
    try:
        import mujoco
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "mujoco":
            raise MissingDependencyError("mujoco", "sim") from error
        raise
    except (ImportError, AttributeError, OSError) as error:
        raise RenderingError(_install_hint(error)) from error
    except RuntimeError as error:  # a backend that it does not know
        raise RenderingError(
            f"MUJOCO_GL={os.environ.get('MUJOCO_GL')} is not a backend of MuJoCo. {BACKENDS}"
        ) from error
    return mujoco


def _install_hint(error: Exception) -> str:
    backend = os.environ.get("MUJOCO_GL", "")
    package = {"egl": "libegl1", "osmesa": "libosmesa6"}.get(backend, "libgl1")
    return (
        f"MuJoCo cannot draw with MUJOCO_GL={backend or '(unset)'}: {error}. "
        f"Install the library: apt-get install {package}. "
        f"Or choose another backend. {BACKENDS}"
    )


@dataclass(frozen=True)
class Primitive:
    """A visual-only shape: nothing collides with it.

    Attributes:
        kind: "sphere", "box" or "cylinder".
        size: MuJoCo's half sizes (3,), metres.
        position: world (3,), metres.
        rotation_33: world orientation.
        rgba: colour in [0, 1].
    """

    kind: str
    size: np.ndarray
    position: np.ndarray
    rotation_33: np.ndarray
    rgba: np.ndarray


class Renderer:
    """Renderer of the worlds of one compiled model, as square images.

    Args:
        model: a `mujoco.MjModel` that `prepare` has set up.
        size: height and width in pixels.

    Raises:
        RenderingError: no GL context can be made.
    """

    def __init__(self, model: Any, size: int):
        self._mujoco = mujoco = load_mujoco()
        self.size = size
        try:
            self._gl = mujoco.GLContext(size, size)
            self._gl.make_current()
        except Exception as error:
            raise RenderingError(_install_hint(error)) from error
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model=model, maxgeom=model.ngeom + model.nsite + 32)
        for flag in ("SHADOW", "REFLECTION", "HAZE", "FOG"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()
        self._camera = mujoco.MjvCamera()
        self._rectangle = mujoco.MjrRect(0, 0, size, size)

    def draw(
        self, model: Any, data: Any, camera: Camera, primitives: Sequence[Primitive] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Renders the image and depth of `camera`.

        Args:
            model: the compiled model or a copy of it.
            data: its state, after `mj_forward`.
            camera: where to look from.
            primitives: shapes to add to this image.

        Returns:
            rgb (H, W, 3) uint8, and z-depth (H, W) float32 in metres, `CLIP_FAR` where there is nothing.
        """
        mujoco = self._mujoco
        self._gl.make_current()
        self._camera.lookat[:] = camera.lookat
        self._camera.azimuth, self._camera.elevation = camera.azimuth, camera.elevation
        self._camera.distance = camera.distance
        model.vis.global_.fovy = camera.fov
        everything = mujoco.mjtCatBit.mjCAT_ALL.value
        # The camera's light goes where the scene's camera was last: move that, or it is one image late.
        mujoco.mjv_updateCamera(model, data, self._camera, self._scene)
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)
        for primitive in primitives:
            self._add(primitive)
        mujoco.mjr_render(self._rectangle, self._scene, self._context)
        rgb_HW3 = np.empty((self.size, self.size, 3), dtype=np.uint8)
        buffer_HW = np.empty((self.size, self.size), dtype=np.float32)
        mujoco.mjr_readPixels(rgb_HW3, buffer_HW, self._rectangle, self._context)
        return rgb_HW3[::-1].copy(), _metric_depth(buffer_HW[::-1])

    def _add(self, primitive: Primitive) -> None:
        geom = self._scene.geoms[self._scene.ngeom]
        kind = getattr(self._mujoco.mjtGeom, f"mjGEOM_{primitive.kind.upper()}")
        rotation_9 = primitive.rotation_33.astype(np.float64).reshape(9)
        self._mujoco.mjv_initGeom(
            geom, kind, primitive.size, primitive.position, rotation_9, primitive.rgba.astype(np.float32)
        )
        self._scene.ngeom += 1

    def close(self) -> None:
        """Frees the GL resources; the renderer cannot be used afterwards."""
        if getattr(self, "_context", None) is not None:
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            self._context = None

    def __del__(self):
        if not sys.is_finalizing():
            self.close()


def prepare(model: Any, size: int) -> None:
    """Configures a model, in place, for fast small images; before a `Renderer` is made from it."""
    model.vis.quality.offsamples = 0
    model.vis.quality.shadowsize = 0
    model.vis.global_.offwidth = model.vis.global_.offheight = size
    model.vis.map.znear = CLIP_NEAR / model.stat.extent
    model.vis.map.zfar = CLIP_FAR / model.stat.extent
    model.mat_reflectance[:] = 0.0


def _metric_depth(buffer_HW: np.ndarray) -> np.ndarray:
    """Converts a reversed depth buffer (1 at `CLIP_NEAR`, 0 at `CLIP_FAR`) to z-depth in metres."""
    inverse_HW = 1.0 / CLIP_FAR + buffer_HW.astype(np.float64) * (1.0 / CLIP_NEAR - 1.0 / CLIP_FAR)
    return (1.0 / inverse_HW).astype(np.float32)
