"""Policies saved by LeRobot: their configuration, processors and weights, loaded as LeRobot loads them."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from spatial_forcing.datasets import open_dataset
from spatial_forcing.device import checked_device
from spatial_forcing.errors import MissingDependencyError, SpatialForcingError


class PolicyError(SpatialForcingError):
    """A saved policy cannot be loaded, or does not fit the environment."""


class SavedPolicy:
    """The configuration and the processors of a saved policy, without its weights.

    Args:
        checkpoint: the folder.
        device: where it is to run.
        overrides: flags of LeRobot that change its configuration, without their prefix:
            ``--n_action_steps=10``.
        rename_map: the environment's names of observations -> the policy's; those that were saved if None.

    Raises:
        PolicyError: the folder is not a checkpoint of a LeRobot policy, or one of its files is damaged.
        DeviceError: no such device.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str = "cpu",
        *,
        overrides: Sequence[str] = (),
        rename_map: Mapping[str, str] | None = None,
    ):
        self.folder = checkpoint = Path(checkpoint)
        checked_device(device)
        if not (checkpoint / "config.json").is_file():
            near = [str(p.parent) for p in sorted(checkpoint.glob("**/config.json"))[:3]]
            hint = f" Did you mean {' or '.join(near)}?" if near else ""
            raise PolicyError(f"{checkpoint} is not a policy checkpoint: it has no config.json.{hint}")
        _check_layout(checkpoint)
        try:
            self._load(device, list(overrides), rename_map)
        except SpatialForcingError:
            raise
        except Exception as error:  # of many kinds: LeRobot's, draccus', safetensors', the disk's
            raise PolicyError(
                f"The policy in {checkpoint} cannot be loaded: {type(error).__name__}: {error}"
            ) from error

    def _load(self, device: str, overrides: list[str], rename_map: Mapping[str, str] | None) -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies import make_pre_post_processors
        from lerobot.utils.import_utils import register_third_party_plugins

        register_third_party_plugins()
        self.config = PreTrainedConfig.from_pretrained(self.folder, cli_overrides=overrides)
        self.config.device, self.config.pretrained_path = device, self.folder
        steps: dict[str, Any] = {"device_processor": {"device": device}}
        if rename_map:
            steps["rename_observations_processor"] = {"rename_map": dict(rename_map)}
        self.preprocess, self.postprocess = make_pre_post_processors(
            self.config, pretrained_path=str(self.folder), preprocessor_overrides=steps
        )

    @property
    def rename_map(self) -> dict[str, str]:
        """The names of observations that its preprocessor replaces -> the policy's."""
        for step in self.preprocess.steps:
            if (names := getattr(step, "rename_map", None)) is not None:
                return dict(names)
        return {}


def _check_layout(checkpoint: Path) -> None:
    from spatial_forcing.openvla.base import is_released

    if is_released(str(checkpoint)):
        raise PolicyError(
            f"{checkpoint} is a checkpoint of OpenVLA in the released layout, expected one of LeRobot's. "
            f"Convert it first: spatial-forcing convert --checkpoint {checkpoint} --out <folder>"
        )


class LoadedPolicy(SavedPolicy):
    """A policy with its processors, as LeRobot loads them from a folder; see :class:`SavedPolicy`."""

    def _load(self, device: str, overrides: list[str], rename_map: Mapping[str, str] | None) -> None:
        from lerobot.policies.factory import get_policy_class

        super()._load(device, overrides, rename_map)
        of_type = get_policy_class(self.config.type)
        if self.config.use_peft:
            self.policy = with_adapter(of_type, self.folder, self.config)
        else:
            self.policy = of_type.from_pretrained(self.folder, config=self.config)

    def precision(self) -> AbstractContextManager[Any]:
        """The context that ``lerobot-eval`` runs a policy in: autocast with ``use_amp``."""
        if not self.config.use_amp:
            return nullcontext()
        return torch.autocast(device_type=torch.device(self.config.device or "cpu").type)

    def batches(
        self, dataset: Any, batch_size: int = 64, rename_map: Mapping[str, str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Preprocessed batches of a LeRobotDataset, in order.

        Args:
            dataset: the frames.
            batch_size: frames at a time.
            rename_map: the trainer's ``--rename_map``.
        """
        from spatial_forcing.patches.versions import renames_before_preprocessing

        renamed = rename_map if rename_map and renames_before_preprocessing() else {}
        loader = torch.utils.data.DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=False,
            num_workers=0,
            generator=torch.Generator(),  # for the seed of workers, which would be torch's next number
        )
        for batch in loader:
            yield self.preprocess({renamed.get(name, name): value for name, value in batch.items()})

    def dataset(self, dataset: Path | str, episodes: Sequence[int] | None = None) -> Any:
        """Opens a data set, or some of its episodes, with the action chunks this policy is trained on."""
        from lerobot.datasets.factory import resolve_delta_timestamps

        from spatial_forcing.chunks import read_chunks_alone

        frames = open_dataset(
            dataset,
            lambda meta: resolve_delta_timestamps(self.config, meta),  # type: ignore[arg-type]
            episodes=episodes,
        )
        return read_chunks_alone(frames)


def with_adapter(of_type: Any, checkpoint: Path, config: Any) -> Any:
    """Loads an adapter (LoRA) with the policy that it was trained on."""
    try:
        from peft import PeftConfig, PeftModel
    except ImportError as error:
        raise MissingDependencyError("peft", "policies") from error
    adapter = PeftConfig.from_pretrained(str(checkpoint))
    base = of_type.from_pretrained(adapter.base_model_name_or_path, config=config, revision=adapter.revision)
    return PeftModel.from_pretrained(base, str(checkpoint), config=adapter).to(config.device)
