"""Dry run of LeRobot's trainer up to its first step, to inspect policy, batch and configuration.

Nothing is rebuilt here: ``lerobot_train.train`` itself makes data set, policy, adapter, processors and batch,
and is stopped where it would update the policy for the first time. It has written nothing by then.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError

from lerobot.configs import parser
from lerobot.configs.default import JobConfig, WandBConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.policies import PreTrainedPolicy

from spatial_forcing import patches
from spatial_forcing.datasets import locate_dataset
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.patches.versions import renames_before_preprocessing
from spatial_forcing.teachers import find_teacher
from spatial_forcing.train import command_line

PACKAGED_TEACHER = "vggt-tiny-sim"


@dataclass
class FirstStep:
    """State of training before its first update: policy, batch, preprocessing.

    Attributes:
        policy: the policy, with forcing without wrappers.
        raw: the batch as the data loader gives it, images as floats in [0, 1].
        batch: the same through the policy's preprocessor.
        preprocess: raw -> batch.
        autocast: () -> the context in which the trainer calls the policy.
        rename_map: the names of observations in ``raw`` -> the policy's.
    """

    policy: Any
    raw: dict[str, Any]
    batch: dict[str, Any]
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    autocast: Callable[[], AbstractContextManager[Any]]
    rename_map: dict[str, str]


class _Reached(BaseException):
    """Ends the trainer at its first step."""


def first_step(
    config: TrainPipelineConfig, arguments: list[str] | None = None, *, forced: bool = True
) -> FirstStep:
    """Runs LeRobot's trainer up to, and without, its first update.

    Args:
        config: of the training; fields that write, log or start something elsewhere are turned off in it.
        arguments: the command line that it came from, which LeRobot reads again for ``--policy.path``.
        forced: whether a policy without forcing is an error.

    Raises:
        SpatialForcingError: training would not reach its first step, or would train a policy without forcing.
    """
    from lerobot.policies import make_pre_post_processors

    _stay_here(config)
    seen: dict[str, Any] = {}

    def noting_processors(*args: Any, **kwargs: Any) -> Any:
        preprocess, postprocess = make_pre_post_processors(*args, **kwargs)

        def noted(raw: dict[str, Any]) -> dict[str, Any]:
            seen["raw"] = dict(raw)
            return preprocess(raw)

        seen["preprocess"] = preprocess
        return noted, postprocess

    def stop(tracker: Any, policy: Any, batch: Any, *args: Any, accelerator: Any, **kwargs: Any) -> Any:
        seen["policy"], seen["batch"] = accelerator.unwrap_model(policy), batch
        seen["autocast"] = accelerator.autocast
        raise _Reached

    replaced = {
        "make_pre_post_processors": noting_processors,
        "update_policy": stop,
        "init_logging": lambda *args, **kwargs: None,
        "inside_slurm": lambda: True,  # no progress bar
    }
    with patches.trainer_with(replaced) as lerobot_train, command_line(*arguments or ()):
        try:
            lerobot_train.train(config)
        except _Reached:
            pass
        except SpatialForcingError:
            raise
        except Exception as error:
            hint = ""
            if isinstance(error, URLError):
                hint = (
                    " Something was to be downloaded, and the network cannot be reached: weights that the "
                    "policy begins with, perhaps (ACT begins without any with "
                    "--policy.pretrained_backbone_weights=null)."
                )
            raise SpatialForcingError(
                f"Training would stop before its first step: {type(error).__name__}: {error}.{hint}"
            ) from error
    if "policy" not in seen:
        raise SpatialForcingError(f"This training has no step to make: steps is {config.steps}.")
    if forced:
        seen["policy"] = _forced(seen["policy"])
    return FirstStep(**seen, rename_map={} if renames_before_preprocessing() else dict(config.rename_map))


def _forced(policy: Any) -> Any:
    for module in policy.modules():  # PEFT puts others around it
        if isinstance(module, PreTrainedPolicy) and module.config.type.startswith("sf_"):
            return module
    raise SpatialForcingError(
        f"This trains {type(policy).__name__}, without Spatial Forcing: --policy.type is one of "
        f"{', '.join(f'sf_{name}' for name in RECORDS)}."
    )


def _stay_here(config: TrainPipelineConfig) -> None:
    """Turns off writing, external logging, uploads and worker processes in a configuration."""
    config.output_dir, config.env, config.num_workers = None, None, 0
    config.wandb, config.job = WandBConfig(enable=False), JobConfig()
    config.save_checkpoint_to_hub = False
    if config.policy is not None:
        config.policy.push_to_hub = False


# ---- the command line --------------------------------------------------------------------------------------


def with_forcing(arguments: list[str]) -> list[str]:
    """Replaces the policy type in training flags by the one with forcing: ``smolvla`` by ``sf_smolvla``.

    Raises:
        UnknownNameError: Spatial Forcing has no record of the type.
    """
    arguments = list(arguments)
    kind = parser.get_type_arg("policy", arguments)
    if kind is None:
        return arguments
    plain = kind.removeprefix("sf_")
    if plain not in RECORDS:
        raise UnknownNameError("policy type", kind, [kind.removesuffix(plain) + name for name in RECORDS])
    for at, argument in enumerate(arguments):
        if argument == f"--policy.type={kind}":
            arguments[at] = f"--policy.type=sf_{plain}"
        elif argument == kind and arguments[at - 1] == "--policy.type":
            arguments[at] = f"sf_{plain}"
    return arguments


def dataset_flags(dataset: str) -> list[str]:
    """LeRobot's flags for a data set, given as a folder or a name on the Hub.

    Raises:
        DatasetError: it is a folder that holds no LeRobotDataset, or neither.
    """
    repo_id, root = locate_dataset(dataset)
    return [f"--dataset.repo_id={repo_id}", *([] if root is None else [f"--dataset.root={root}"])]


@contextmanager
def training_flags(
    lerobot: list[str],
    *,
    dataset: str | None = None,
    checkpoint: Path | None = None,
    batch_size: int = 8,
    **forcing: Any,
) -> Iterator[list[str]]:
    """Completes the doctor's options to a training command, as flags of lerobot-train.

    Args:
        lerobot: flags of lerobot-train, of which ``--policy.type`` may be the plain one.
        dataset: a folder or a name on the Hub. Without any data set a few frames are rendered, and are gone
            when the context is left.
        checkpoint: folder of a policy. Without any policy the built-in VLA is taken.
        batch_size: as in training.
        forcing: options of forcing as in training: teacher, teacher_checkpoint, layer, resolution, dtype,
            cache, site;
            None leaves one out. Without teacher and cache the small packaged teacher is taken.

    Raises:
        UnknownNameError: no such policy type or teacher.
        SpatialForcingError: no such checkpoint or data set.
    """
    flags = with_forcing(lerobot)
    named = {flag.split("=", 1)[0].removeprefix("--") for flag in flags if flag.startswith("--")}
    from_file = "config_path" in named
    if checkpoint is not None:
        flags.append(f"--policy.path={_checkpoint(checkpoint)}")
    elif not from_file and not named & {"policy.type", "policy.path"}:
        flags.append("--policy.type=sf_tiny")
    features = {f"policy.forcing.{name}" for name in ("teacher", "cache", "alignments")} & named
    features |= {name for name in ("teacher", "cache") if forcing.get(name) is not None}
    if not from_file and not features:
        forcing["teacher"] = PACKAGED_TEACHER
    if forcing.get("teacher") is not None:
        find_teacher(forcing["teacher"])
    flags += [f"--policy.forcing.{name}={value}" for name, value in forcing.items() if value is not None]
    if "batch_size" not in named:
        flags.append(f"--batch_size={batch_size}")
    flags.append("--policy.push_to_hub=false")
    if dataset is not None:
        flags += dataset_flags(dataset)
    elif not from_file and not named & {"dataset.repo_id"}:
        with tempfile.TemporaryDirectory() as folder:
            yield flags + dataset_flags(str(_rendered(Path(folder) / "rendered", batch_size)))
        return
    yield flags


def _checkpoint(folder: Path) -> Path:
    if not (folder / "config.json").is_file():
        near = [str(path.parent) for path in sorted(folder.glob("**/config.json"))[:3]]
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        raise SpatialForcingError(f"{folder} is not a policy checkpoint: it has no config.json.{hint}")
    return folder


def _rendered(root: Path, frames: int) -> Path:
    """Renders a data set of a few frames of reach-v3."""
    from spatial_forcing.sim.collect import DemoSpec, collect

    return collect(DemoSpec(tasks=("reach-v3",), episodes=1, frames=max(2, frames)), root, workers=1)
