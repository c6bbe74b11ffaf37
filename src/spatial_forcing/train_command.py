"""The command ``spatial-forcing train``: LeRobot's trainer with early, readable errors.

What is wrong with flags, data set or output folder is said in one message, before anything is computed; an
interruption says what it leaves.
"""

import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError
from spatial_forcing.files import check_folder

COMMAND = "spatial-forcing train"
LEAST = {"steps": 1, "batch_size": 1, "num_workers": 0, "log_freq": 0, "eval_steps": 0}


class TrainError(SpatialForcingError):
    """LeRobot's trainer cannot start, or failed outside a training step."""


class TrainCommand:
    """One run of the command ``train``.

    Attributes:
        folder: the output folder, once it is known.
    """

    folder: Path | None = None

    def run(self, arguments: list[str]) -> None:
        """Reads the flags as LeRobot does, checks what they name, and trains.

        Raises:
            FlagError: LeRobot cannot read the flags, or train with them.
            TrainError: what they name is not there or taken, or LeRobot gave up outside a step.
        """
        # LeRobot sets its own level when training starts; until then it would print a page about FFmpeg.
        logging.getLogger().setLevel(logging.ERROR)
        try:
            from spatial_forcing.flags import read_config
            from spatial_forcing.train import log_short_runs, train_policy
        except ImportError as error:
            raise MissingDependencyError("LeRobot", "lerobot") from error
        sys.argv = [COMMAND, *arguments]  # LeRobot reads some of it again
        config = read_config(arguments)
        check_run(config)
        log_short_runs(config)
        self.folder = config.output_dir and Path(config.output_dir)
        try:
            train_policy(config)
        except SpatialForcingError:
            raise
        except Exception as error:
            if in_a_step(error):
                raise
            raise TrainError(given_up(config, error)) from error

    def stopped(self) -> str:
        """Message after Ctrl-C or SIGTERM: what is saved, and how to resume."""
        if self.folder is None or not self.folder.is_dir():
            return "Nothing was written."
        return what_is_there(self.folder)


def check_run(config: Any) -> None:
    """Raises :class:`TrainError` or :class:`FlagError` for errors that LeRobot would find later, with a
    traceback."""
    from lerobot.configs import parser

    from spatial_forcing.flags import FlagError, flag_error

    for name, least in LEAST.items():
        if (value := getattr(config, name)) < least:
            raise TrainError(f"--{name} must be at least {least}; got {value}.")
    if config.job.is_remote:
        return
    check_output(config)
    try:
        config.validate()
    except SpatialForcingError:
        raise
    except Exception as error:
        path = parser.get_path_arg("policy")
        where = f"--policy.path={path}: " if path else ""
        raise FlagError(where + flag_error(error)) from error
    check_dataset(config.dataset)


def check_output(config: Any) -> None:
    """Raises :class:`TrainError` if LeRobot would refuse the output folder, or could not write there."""
    folder = config.output_dir and Path(config.output_dir)
    if folder and folder.exists() and not config.resume:
        raise TrainError(f"The output folder {folder} exists. {what_is_there(folder)}")
    if folder:
        check_folder(folder, TrainError)


def in_a_step(error: Exception) -> bool:
    """Whether an error comes from a training step. Errors from elsewhere are about files: the data set's,
    the policy's, the checkpoints'."""
    return any(frame.name == "update_policy" for frame in traceback.extract_tb(error.__traceback__))


def given_up(config: Any, error: Exception) -> str:
    """Message for an error in LeRobot outside a step, with the names of what it was reading or writing."""
    policy = config.policy and config.policy.pretrained_path
    read = [f"the data set {config.dataset.root or config.dataset.repo_id}"]
    read += [f"the policy {policy}"] if policy else []
    return (
        f"LeRobot gave up: {type(error).__name__}: {error}. It was reading {' and '.join(read)}, and writing "
        f"to {config.output_dir}: something there may be damaged or missing."
    )


def what_is_there(folder: Path) -> str:
    """Describes what of a training is in its output folder, and how to resume."""
    last = folder / "checkpoints" / "last"
    config = last / "pretrained_model" / "train_config.json"
    if config.is_file():
        step = last.resolve().name.lstrip("0") or "0"
        return (
            f"Its last checkpoint is of step {step}. To continue from it: {COMMAND} --config_path={config} "
            "--resume=true"
        )
    return (
        f"There is no checkpoint in {folder} to continue from. Start again with another --output_dir, or "
        "remove the folder first; --save_freq says how often a checkpoint is kept."
    )


def check_dataset(dataset: Any) -> None:
    """Raises :class:`TrainError` unless the data set's description can be read, here or on the Hub."""
    from lerobot.datasets.lerobot_dataset import LeRobotDatasetMetadata

    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or dataset.repo_type != "dataset":
        return  # LeRobot lets one process download it before the others look
    if dataset.root is not None and Path(dataset.root).exists() and not Path(dataset.root).is_dir():
        raise TrainError(f"--dataset.root={dataset.root} is not a folder.")
    try:
        meta = LeRobotDatasetMetadata(dataset.repo_id, root=dataset.root, revision=dataset.revision)
    except Exception as error:
        where = "" if dataset.root is None else f" in --dataset.root={dataset.root}"
        if dataset.root is not None and not Path(dataset.root).exists():
            where += " (no such folder)"
        raise TrainError(
            f"The data set {dataset.repo_id}{where} could not be read, here or from the Hub: "
            f"{type(error).__name__}: {error}"
        ) from error
    unknown = [episode for episode in dataset.episodes or [] if not 0 <= episode < meta.total_episodes]
    if unknown:
        raise TrainError(
            f"The data set {dataset.repo_id} has the episodes 0 to {meta.total_episodes - 1}; "
            f"--dataset.episodes names {unknown[0]}."
        )
