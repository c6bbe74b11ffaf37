"""Spatial Forcing inside a LeRobot policy: the part that is the same for every host.

For a host policy ``XPolicy`` with configuration ``XConfig`` the plug-in package has

    @PreTrainedConfig.register_subclass("sf_x")
    @dataclass
    class SfXConfig(XConfig):  forcing: ForcingConfig
    class SfXPolicy(ForcedPolicy, XPolicy):  ...

Everything of the host is inherited. Training adds the loss; evaluation and ``select_action`` are the host's
own; a saved checkpoint has the host's type and exactly the host's weights, with the projector beside it in
``spatial_forcing/`` for resuming.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from spatial_forcing.align import SpatialForcing
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Features
from spatial_forcing.hosts import host_of
from spatial_forcing.teachers import load_teacher

SIDE_FOLDER = "spatial_forcing"
DEFAULT_TEACHER = "vggt-1b"
# The projector is initialised from this seed, so that turning forcing on never shifts the host's own random
# numbers.
PROJECTOR_SEED = 20251012


@dataclass
class ForcingConfig:
    """Options of Spatial Forcing on the command line: ``--policy.forcing.<name>``.

    Args:
        teacher: a registered teacher; the one the cache is of if None, or vggt-1b without a cache.
        weights: a local file or folder with the teacher's weights; the packaged or Hub weights if None.
        cache: a folder of stored features (written by ``spatial-forcing cache`` or ``demo``); the teacher
            runs online if None.
        weight: weight of the alignment loss; 0 is the baseline and runs the same code.
        depth: blocks before the tap; the host's recommendation if None.
        norm: the projector's norm, "layer" or "batch".
        position_embedding: share of position embedding in the target.
        standardize: subtract the mean of the teacher's features and divide by their deviation, channel by
            channel.
        published: the public code's numerics.
        ratio_every: measure the gradient-norm ratio every so many steps; 0 never. It costs a second backward
            down to the tap.
    """

    teacher: str | None = None
    weights: str | None = None
    cache: str | None = None
    weight: float = 0.5
    depth: int | None = None
    norm: str = "layer"
    position_embedding: float = 0.1
    standardize: bool = False
    published: bool = False
    ratio_every: int = 50


class FeatureSource:
    """Where a training step gets its teacher features: from stored ones, or from the teacher itself."""

    def __init__(
        self, config: ForcingConfig, cameras: list[str], device: str, dataset_root: Path | None = None
    ):
        self.store = None
        if config.cache is not None:
            self.store = FeatureStore(config.cache)
            self.store.check(teacher=config.teacher, cameras=cameras, dataset_root=dataset_root)
            self.teacher: Any = self.store
        else:
            self.teacher = load_teacher(
                config.teacher or DEFAULT_TEACHER, weights=config.weights, device=device
            )

    def __call__(
        self, batch: dict[str, Any], images: Callable[[dict[str, Any]], Tensor]
    ) -> Tensor | Features:
        if self.store is None:
            return images(batch)
        if "index" not in batch:
            raise SpatialForcingError(
                "Stored features are looked up by frame `index`, and the batch has none."
            )
        return self.store.read(batch["index"])


class ForcedPolicy:
    """Mixin that adds the alignment loss to a LeRobot policy. Put it before the policy class.

    The host class must offer ``images_BV3HW(batch)``: the pictures of a preprocessed batch in [0, 1], in the
    order of its visual tokens.
    """

    plain_config_class: ClassVar[type]

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        # The teacher and the projector draw random numbers of their own: the host's stream must not notice.
        with torch.random.fork_rng():
            torch.manual_seed(PROJECTOR_SEED)
            self.forcing = self._build_forcing(config.forcing, kwargs.get("dataset_meta"))
        self._forward_count = 0
        logging.getLogger(__name__).info(self.forcing.describe())

    def _build_forcing(self, forcing: ForcingConfig, dataset_meta: Any) -> SpatialForcing:
        host = host_of(self)  # type: ignore[arg-type]
        root = None if dataset_meta is None else Path(dataset_meta.root)
        source = FeatureSource(forcing, list(self.config.image_features), self.config.device, root)
        object.__setattr__(self, "feature_source", source)
        stats = getattr(source.teacher, "stats", None) if forcing.standardize else None
        if forcing.standardize and stats is None:
            raise SpatialForcingError(
                f"forcing.standardize needs the mean and deviation of the features of {forcing.teacher!r}, "
                "which come with a feature cache: give forcing.cache, or set forcing.standardize=false."
            )
        return SpatialForcing(
            host,
            source.teacher,
            forcing.weight,
            depth=forcing.depth,
            norm=forcing.norm,  # type: ignore[arg-type]
            position_embedding=forcing.position_embedding,
            standardize=stats,
            published=forcing.published,
        )

    def forward(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """The host's loss plus, in training, the alignment loss; both are in the logs."""
        if not self.training:
            return super().forward(batch, *args, **kwargs)  # type: ignore[misc]
        with self.forcing.watch():
            action_loss, logs = super().forward(batch, *args, **kwargs)  # type: ignore[misc]
        height, width = batch[next(iter(self.config.image_features))].shape[-2:]
        align_loss = self.forcing(
            self.feature_source(batch, self.images_BV3HW), picture_hw=(int(height), int(width))
        )
        logs = {**(logs or {}), "action_loss": action_loss.item()}
        logs |= {name: value.item() for name, value in self.forcing.logs.items()}
        every = self.config.forcing.ratio_every
        if every and self._forward_count % every == 0 and self.forcing.weight > 0:
            logs["gradient_ratio"] = self.forcing.gradient_ratio(action_loss, align_loss).item()
        self._forward_count += 1
        return action_loss + align_loss, logs

    # ---- checkpoints: the host's files, the projector beside them
    # ------------------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        everything = self.state_dict() if state_dict is None else state_dict
        plain = {k: v for k, v in everything.items() if not k.startswith("forcing.")}
        config, self.config = self.config, plain_config(self.config, self.plain_config_class)
        try:
            super()._save_pretrained(save_directory, state_dict=plain)  # type: ignore[misc]
        finally:
            self.config = config
        side = save_directory / SIDE_FOLDER
        side.mkdir(exist_ok=True)
        projector = {k.removeprefix("forcing."): v for k, v in everything.items() if k.startswith("forcing.")}
        save_file({k: v.contiguous() for k, v in projector.items()}, side / "projector.safetensors")
        record = asdict(self.config.forcing) | {
            "teacher_fingerprint": self.forcing.teacher.fingerprint,
            "teacher_licence": self.forcing.teacher.licence,
        }
        (side / "forcing.json").write_text(json.dumps(record, indent=2) + "\n")

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, map_location: str, strict: bool) -> Any:
        forcing = model.forcing
        del model.forcing  # so that LeRobot's loader compares with exactly the host's keys
        try:
            model = super()._load_as_safetensor(model, model_file, map_location, strict)  # type: ignore[misc]
        finally:
            model.forcing = forcing
        side = Path(model_file).parent / SIDE_FOLDER
        if side.is_dir():
            forcing.load_state_dict(load_file(side / "projector.safetensors"))
            saved = json.loads((side / "forcing.json").read_text())["teacher_fingerprint"]
            if saved != forcing.teacher.fingerprint:
                raise SpatialForcingError(
                    f"This checkpoint was trained toward teacher features {saved}, but the ones given now "
                    f"are {forcing.teacher.fingerprint}: other weights, layer, resolution or views."
                )
        return model


def plain_config(config: Any, plain_class: type) -> Any:
    """The host's own configuration, with the values of a forced one."""
    plain = object.__new__(plain_class)
    for f in fields(plain_class):
        setattr(plain, f.name, getattr(config, f.name))
    return plain
