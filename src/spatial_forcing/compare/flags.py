"""The training command of an arm: the flags after ``--``, and what the comparison adds to them.

Every run is a command that could be typed: ``spatial-forcing train`` with :func:`run_flags`.
"""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from spatial_forcing.compare.arm import PATH, Arm, flag_value
from spatial_forcing.compare.options import Compare, CompareError
from spatial_forcing.errors import SpatialForcingError

FORCING = "policy.forcing."
# Options of forcing that are said once, however many alignments there are.
OF_ALL = ("cameras", "diagnostics_every", "new_projector", "one_token_late")
# What a comparison decides itself, and where that is said.
DECIDED = {
    "seed": "--seeds before --",
    "output_dir": "--out before --",
    "save_freq": "--evaluations before --",
    "save_checkpoint": "--evaluations before --",
    "resume": "nothing: the same command continues",
    "config_path": "the flags themselves: every run writes such a file",
    "dataset.eval_split": "--holdout before --",
    "eval_steps": "--evaluations before --",
    "env_eval_freq": "--evaluations before --",
    "eval.n_episodes": "--episodes before --",
    "eval.use_async_envs": "--workers before --: a run steps its environments in one process",
    "eval.recording": "--videos before --",
    "eval.recording_repo_id": "--videos before --",
    "dataset.revision": "--dataset.root: the folder of that revision; a comparison measures on it, too",
    "policy.forcing.cache": "nothing: the comparison stores features itself, of its training episodes alone",
    "policy.forcing.alignments": "an arms file: an entry with forcing: {alignments: file.yaml}",
    "policy.forcing.control": "--arms before --",
    "policy.forcing.teacher": "--teacher before --",
}


def name_of(flag: str) -> str:
    """The name in ``--name=value`` or ``--name``."""
    return flag.removeprefix("--").partition("=")[0]


def joined(flags: Sequence[str]) -> list[str]:
    """Normalises flags: ``--name value`` becomes ``--name=value``.

    Raises:
        CompareError: something is no flag.
    """
    found: list[str] = []
    for word in flags:
        if word.startswith("--"):
            found.append(word)
        elif found and "=" not in found[-1]:
            found[-1] += f"={word}"
        else:
            raise CompareError(f"After -- come the flags of lerobot-train, and {word!r} is none.")
    return found


def check_flags(flags: Sequence[str]) -> None:
    """Raises :class:`CompareError` for flags that the comparison sets itself."""
    ours = {option.name for option in fields(Compare)}
    for name in map(name_of, flags):
        if name.replace("-", "_") in ours:
            raise CompareError(f"--{name} is an option of compare: give it before --.")
        if name in DECIDED:
            raise CompareError(f"--{name} is not for the command of a comparison; say {DECIDED[name]}.")


def side_by_side(flags: Sequence[str], env: Any, episodes: int) -> int:
    """Episodes that a rollout has side by side: LeRobot's ``--eval.batch_size`` where it was given, else one.

    One process steps them in turns, so more are no faster but for a large policy's forward pass, and each is
    a simulator in memory (LIBERO's takes hundreds of MB). All of the embedded world's, which are small.
    """
    given = [flag.partition("=")[2] for flag in flags if name_of(flag) == "eval.batch_size"]
    if given and given[-1].isdigit() and int(given[-1]) > 0:
        return min(int(given[-1]), episodes)
    return episodes if env.type == "sf_metaworld" else 1


def policy_of(flags: Sequence[str]) -> Any:
    """LeRobot's configuration of the policy that some flags train, that of a ``--policy.path`` included.

    Raises:
        FlagError: LeRobot does not take them.
    """
    from spatial_forcing.flags import FlagError, flag_error, read_config
    from spatial_forcing.train import command_line

    flags = [*flags, "--policy.push_to_hub=false"]
    config = read_config(flags)
    with command_line(*flags):
        try:
            config.validate()
        except SpatialForcingError:
            raise
        except Exception as error:  # of several kinds
            raise FlagError(flag_error(error)) from error
    return config.policy


def arm_flags(flags: Sequence[str], arm: Arm, caches: Sequence[Path] = ()) -> list[str]:
    """The flags of an arm: those after ``--`` with the type of the policy and the options of this arm.

    Options of forcing after ``--`` are for every arm with forcing, and for each of its alignments if it lists
    several; an arm's own go before them.

    Args:
        flags: after ``--``.
        arm: one arm.
        caches: the stored features that it reads, one for each of its alignments; none for a teacher online.
    """
    own = {name_of(flag) for flag in arm.differs}
    found = []
    for flag in flags:
        name = name_of(flag)
        if name in own or (name.startswith(FORCING) and arm.forcing is None):
            continue
        if name == "policy.type" and PATH in own:  # the checkpoint has one
            continue
        if name == "policy.type":
            plain = flag.partition("=")[2].removeprefix("sf_")
            flag = f"--policy.type={plain if arm.forcing is None else f'sf_{plain}'}"
        found.append(flag)
    if arm.forcing is not None and "alignments" in arm.forcing:
        return alignments_flags([*found, *arm.differs], arm.forcing["alignments"], caches)
    return [*found, *arm.differs, *(f"--{FORCING}cache={cache}" for cache in caches)]


def alignments_flags(
    flags: Sequence[str], entries: Sequence[dict[str, Any]], caches: Sequence[Path]
) -> list[str]:
    """Flags of an arm that lists alignments: flat options of a single one become defaults of all entries."""
    found, options = [], {}
    for flag in flags:
        name, _, value = flag.removeprefix("--").partition("=")
        option = name.removeprefix(FORCING)
        if not name.startswith(FORCING) or option.partition(".")[0] in OF_ALL:
            found.append(flag)
        elif option != "alignments":
            options[option] = yaml.safe_load(value)
    read = [{"cache": str(cache)} for cache in caches] or [{}] * len(entries)
    listed = [{**options, **entry, **cache} for entry, cache in zip(entries, read, strict=True)]
    return [*found, f"--{FORCING}alignments={flag_value(listed)}"]
