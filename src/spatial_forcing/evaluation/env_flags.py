"""The flags of ``eval`` after ``--``: LeRobot's flags of an environment, read by LeRobot's own parser."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lerobot.envs.configs import EnvConfig, HubEnvConfig

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.flags import read_flags

POLICY = "--policy."
# What `eval` decides itself, and where that is said.
DECIDED = {
    "--seed": "--seed before --",
    "--output_dir": "--out before --",
    "--eval.n_episodes": "--episodes before --",
    "--eval.batch_size": "--batch-size before --",
    "--eval.use_async_envs": "--workers before --",
    "--policy.path": "--policies before --",
    "--policy.device": "--device before --",
}


class EvalError(SpatialForcingError):
    """An evaluation cannot be run as asked, or an episode of it failed."""


@dataclass
class EnvFlags:
    """LeRobot's configuration of an environment, as ``lerobot-eval`` takes it.

    Attributes:
        env: any of LeRobot's, or of its plug-ins.
        rename_map: the environment's names of observations -> the policies'.
    """

    env: EnvConfig
    rename_map: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class EnvCommand:
    """Parsed flags after ``--``.

    Attributes:
        env: the environment's configuration.
        rename_map: see :class:`EnvFlags`; empty for the names that each policy saved.
        overrides: options of the policies' configurations, without their prefix: ``--n_action_steps=10``.
    """

    env: Any
    rename_map: dict[str, str]
    overrides: tuple[str, ...]


def read_env(flags: Sequence[str]) -> EnvCommand:
    """Parses the flags after ``--``.

    Raises:
        EvalError: they name no environment, one that runs code from the Hub, or what ``eval`` decides itself.
        FlagError: LeRobot does not take them.
    """
    flags = list(flags)
    for flag in flags:
        if (where := DECIDED.get(flag.partition("=")[0])) is not None:
            raise EvalError(f"{flag.partition('=')[0]} is not for after --; say {where}.")
    ours = [flag for flag in flags if flag.startswith(POLICY)]
    if unfit := [flag for flag in ours if "=" not in flag]:
        raise EvalError(f"After --, options of the policies are written {unfit[0]}=<value>.")
    rest = [flag for flag in flags if flag not in ours]
    if not any(flag.partition("=")[0] in ("--env.type", "--config_path") for flag in rest):
        raise EvalError(
            "Say which environment after --, as for lerobot-eval: -- --env.type=libero "
            "--env.task=libero_object, or --env.type=sf_metaworld --env.task=reach-v3."
        )
    found = read_flags(EnvFlags, rest, "lerobot-eval")
    if isinstance(found.env, HubEnvConfig):
        raise EvalError(
            f"--env.type={found.env.type} runs code that is fetched from the Hub; eval does not. Use "
            "lerobot-eval --trust_remote_code=true."
        )
    overrides = tuple(f"--{flag.removeprefix(POLICY)}" for flag in ours)
    return EnvCommand(found.env, dict(found.rename_map), overrides)


def settings_of(env: Any) -> dict[str, Any]:
    """The options of an environment that decide its episodes, as plain data."""
    import draccus

    encoded = {"type": env.type} | draccus.encode(env)
    return {name: value for name, value in encoded.items() if name not in ("features", "features_map")}
