"""LeRobot's trainer, stopped before its first step: what it would train, and on what.

Nothing is rebuilt here: ``lerobot_train.train`` itself makes data set, policy, adapter, processors and batch,
and is stopped where it would update the policy for the first time. It has written nothing by then.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from lerobot.configs import parser
from lerobot.configs.default import JobConfig, WandBConfig
from lerobot.configs.train import TrainPipelineConfig

from spatial_forcing.datasets import locate_dataset
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.train import command_line


@dataclass
class FirstStep:
    """Where training stands before its first update.

    Attributes:
        policy: the policy with forcing, without wrappers.
        raw: the batch as the data loader gives it, pictures as floats in [0, 1].
        batch: the same through the policy's preprocessor.
        preprocess: raw -> batch.
        autocast: () -> the context in which the trainer calls the policy.
        rename_map: the data set's names of observations -> the policy's.
    """

    policy: Any
    raw: dict[str, Any]
    batch: dict[str, Any]
    preprocess: Callable[[dict[str, Any]], dict[str, Any]]
    autocast: Callable[[], AbstractContextManager[Any]]
    rename_map: dict[str, str]


class _Reached(BaseException):
    """Ends the trainer at its first step."""


def first_step(config: TrainPipelineConfig, arguments: list[str] | None = None) -> FirstStep:
    """Runs LeRobot's trainer up to its first update.

    Args:
        config: of the training; fields that write, log or start something elsewhere are turned off in it.
        arguments: the command line that it came from, which LeRobot reads again for ``--policy.path``.

    Raises:
        SpatialForcingError: training would not reach its first step, or would train a policy without forcing.
    """
    from lerobot.scripts import lerobot_train

    _stay_here(config)
    seen: dict[str, Any] = {}
    make_processors = lerobot_train.make_pre_post_processors

    def noting_processors(*args: Any, **kwargs: Any) -> Any:
        preprocess, postprocess = make_processors(*args, **kwargs)

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
    with _replaced(lerobot_train, replaced), command_line(*arguments or ()):
        try:
            lerobot_train.train(config)
        except _Reached:
            pass
        except SpatialForcingError:
            raise
        except Exception as error:
            raise SpatialForcingError(
                f"Training would stop before its first step: {type(error).__name__}: {error}"
            ) from error
    if "policy" not in seen:
        raise SpatialForcingError(f"This training has no step to make: steps is {config.steps}.")
    seen["policy"] = _forced(seen["policy"])
    return FirstStep(**seen, rename_map=dict(config.rename_map))


def _forced(policy: Any) -> Any:
    from lerobot_policy_spatial_forcing.forcing import ForcedPolicy

    for module in policy.modules():  # PEFT puts others around it
        if isinstance(module, ForcedPolicy):
            return module
    raise SpatialForcingError(
        f"This trains {type(policy).__name__}, without Spatial Forcing: --policy.type is one of "
        f"{', '.join(f'sf_{name}' for name in RECORDS)}."
    )


def _stay_here(config: TrainPipelineConfig) -> None:
    """Nothing is written, logged elsewhere or sent away, and no process is started."""
    config.output_dir, config.env, config.num_workers = None, None, 0
    config.wandb, config.job = WandBConfig(enable=False), JobConfig()
    config.save_checkpoint_to_hub = False
    if config.policy is not None:
        config.policy.push_to_hub = False


@contextmanager
def _replaced(module: ModuleType, parts: dict[str, Any]) -> Iterator[None]:
    before = {name: getattr(module, name) for name in parts}
    for name, part in parts.items():
        setattr(module, name, part)
    try:
        yield
    finally:
        for name, part in before.items():
            setattr(module, name, part)


# ---- the command line --------------------------------------------------------------------------------------


def with_forcing(arguments: list[str]) -> list[str]:
    """The flags of a training command, its policy type that with forcing: ``smolvla`` is ``sf_smolvla``.

    Raises:
        UnknownNameError: Spatial Forcing has no record of the type.
    """
    arguments = list(arguments)
    kind = parser.get_type_arg("policy", arguments)
    if kind is None:
        return arguments
    plain = kind.removeprefix("sf_")
    if plain not in RECORDS:
        raise UnknownNameError("policy type", kind, RECORDS)
    for at, argument in enumerate(arguments):
        if argument == f"--policy.type={kind}":
            arguments[at] = f"--policy.type=sf_{plain}"
        elif argument == kind and arguments[at - 1] == "--policy.type":
            arguments[at] = f"sf_{plain}"
    return arguments


def dataset_flags(dataset: str) -> list[str]:
    """The flags that name a data set: a folder, or its name on the Hub.

    Raises:
        DatasetError: it is a folder that holds no LeRobotDataset, or neither.
    """
    repo_id, root = locate_dataset(dataset)
    return [f"--dataset.repo_id={repo_id}", *([] if root is None else [f"--dataset.root={root}"])]
