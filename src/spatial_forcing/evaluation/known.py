"""What is known of LeRobot's environments beyond what their configurations say.

Sources: LeRobot 0.6.1's ``envs``; LIBERO (arXiv 2306.03310) and robosuite 1.4 (controllers and grippers);
Meta-World 3.1.1. Of an environment that is not listed nothing is assumed.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.libero.install import draws_darker


@dataclass(frozen=True)
class Known:
    """Facts about an environment.

    Attributes:
        state: what the numbers of ``observation.state`` are.
        action: what those of an action are.
        gripper: the number of the action that moves the gripper.
        opens: the sign of a gripper action that opens it.
        two_valued: whether demonstrations give the gripper -1 or 1 and nothing else.
        relative: whether actions are displacements; None if its configuration says (``control_mode``).
        labels: by control frequency in Hz, the ``fps`` that data sets recorded at it are labelled with.
    """

    state: tuple[str, ...]
    action: tuple[str, ...]
    gripper: int
    opens: int
    two_valued: bool
    relative: bool | None
    labels: Mapping[int, tuple[int, ...]]


_LIBERO = Known(
    state=("x", "y", "z", "axis-angle x", "axis-angle y", "axis-angle z", "finger", "finger"),
    action=("x", "y", "z", "rotation x", "rotation y", "rotation z", "gripper"),
    gripper=6,
    opens=-1,
    two_valued=True,
    relative=None,
    # The public data sets were recorded at 20 Hz; those made with openpi's script are labelled 10.
    labels={20: (10, 20)},
)
_METAWORLD = Known(
    state=("x", "y", "z", "gripper"),
    action=("x", "y", "z", "gripper"),
    gripper=3,
    opens=-1,
    two_valued=False,
    relative=True,
    labels={80: (80,)},
)
KNOWN = {"libero": _LIBERO, "libero_plus": _LIBERO, "metaworld": _METAWORLD, "sf_metaworld": _METAWORLD}


def drawn_as(kind: str, rendering: str) -> AbstractContextManager[None]:
    """The context in which an environment is made and stepped to be rendered as named, "stock" or "cheap".

    Raises:
        EvalError: only LIBERO has a choice.
    """
    if rendering == "stock":
        return nullcontext()
    if not kind.startswith("libero"):
        raise EvalError(f"--rendering {rendering} is for LIBERO; {kind} has one rendering.")
    from spatial_forcing.libero.rendering import drawn

    return drawn(rendering)


def rendering_warning(kind: str, versions: Mapping[str, str]) -> str | None:
    """Warning where an environment is known to look different with a version of MuJoCo."""
    mujoco = versions.get("mujoco", "0")
    if not kind.startswith("libero") or not draws_darker(mujoco):
        return None
    return (
        f"MuJoCo {mujoco} renders LIBERO's floors darker than 3.3.2 and earlier, with which public data and "
        "results were made; that shifts success rates. Install mujoco==3.3.0, or compare only with results "
        "of the same version."
    )


def settings_warning(env: object) -> str | None:
    """Warning for options of an environment that make an episode depend on those before it."""
    if getattr(env, "hard_reset", True):
        return None
    return (
        "--env.hard_reset=false: an episode may then depend on those before it in its process, and so on the "
        "number of workers. Leave it out for results that can be repeated."
    )
