"""Spatial Forcing inside a LeRobot policy: the part that is the same for every host.

For a host with configuration ``XConfig`` and policy ``XPolicy`` the plug-in makes ``SfXConfig(XConfig)`` with
one more field, ``forcing``, and ``SfXPolicy(ForcedPolicy, XPolicy)``. Everything of the host is inherited.
Training adds the loss; evaluation and ``select_action`` are the host's own; a saved checkpoint has the host's
type and exactly the host's weights, with the projector beside it in ``spatial_forcing/`` for resuming.
"""

import json
import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lerobot_policy_spatial_forcing.cameras import check_cameras, chosen_cameras
from lerobot_policy_spatial_forcing.feature_source import DEFAULT_TEACHER, FeatureSource
from spatial_forcing.align import SpatialForcing
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.lerobot import cameras_in, policy_host
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.ranges import check_numbers
from spatial_forcing.tap import TapError

SIDE_FOLDER = "spatial_forcing"
# The projector is initialised from this seed, so that turning forcing on never shifts the host's own random
# numbers.
PROJECTOR_SEED = 20251012


@dataclass
class ForcingConfig:
    """Spatial Forcing: a loss that aligns the policy's visual tokens with a frozen 3D teacher's features."""

    # Draccus takes the help of a flag from the string below its field.
    teacher: str | None = None
    """Registered teacher, or a local file or folder; the cache's if None, vggt-1b without a cache."""
    weights: str | None = None
    """Local file or folder with the named teacher's weights; the packaged ones or the Hub's if None."""
    layer: int | None = None
    """Layer of the teacher to align to, negative from the end; the last (or the cache's) if None."""
    resolution: int | None = None
    """Side in pixels of what the teacher sees; its own (vggt-1b: 518) or the cache's if None."""
    dtype: str | None = None
    """Of the teacher's matrix products: bfloat16, float16 or float32; float32 (or the cache's) if None."""
    cache: str | None = None
    """Folder written by spatial-forcing cache; without one the teacher runs at every step."""
    coefficients: bool = False
    """Align to the coefficients in a compressed cache, in the geometry of the tokens they stand for."""
    cameras: list[str] | dict[str, str] | None = None
    """Cameras to align, in the teacher's order; all if None. With --rename_map: its entries for them."""
    weight: float = 0.5
    """Weight of the alignment loss, 0 or more; 0 is the baseline and runs the same code."""
    depth: int | None = None
    """Blocks of the policy before the tap; the host's recommendation if None."""
    norm: str = "layer"
    """Norm in the projector: layer or batch."""
    position_embedding: float = 0.1
    """Share of position embedding in the target, 0 to 1."""
    standardize: bool = False
    """Standardise the teacher's features channel by channel (needs a cache)."""
    published: bool = False
    """The public code's numerics."""
    control: str | None = None
    """A target without the teacher's content, to compare with: shuffled (another frame's) or place alone."""
    new_projector: bool = False
    """Start a new projector where the checkpoint's was for other features or another tap; else an error."""
    ratio_every: int = 50
    """Steps between measurements of the gradient-norm ratio (a second backward down to the tap); 0 never."""

    def __post_init__(self) -> None:
        check_numbers(self.weight, self.position_embedding)
        if self.ratio_every < 0:
            raise SpatialForcingError(
                "forcing.ratio_every is the number of steps between measurements of the gradient ratio, 0 or "
                f"more (0: none); got {self.ratio_every}."
            )
        check_cameras(self.cameras)


def renamed_stats(cameras: dict[str, str], stats: dict[str, Any]) -> dict[str, Any]:
    """The data set's statistics, those of cameras also under the names that the policy gives them."""
    return stats | {policy: stats[dataset] for policy, dataset in cameras.items() if dataset in stats}


# The options that decide what a projector is, reads and gives, beside the site of the tap and the teacher.
OF_THE_PROJECTOR = ("norm", "coefficients", "position_embedding", "standardize", "published", "control")


def _features_of(forcing: dict[str, Any], fingerprint: str) -> str:
    """What a policy is trained toward, for people."""
    return f"{forcing.get('cache') or forcing.get('teacher') or DEFAULT_TEACHER} ({fingerprint})"


class ForcedPolicy:
    """Mixin that adds the alignment loss to a LeRobot policy. Put it before the policy class."""

    record: ClassVar[PolicyRecord]
    plain_class: ClassVar[type]

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        meta = kwargs.get("dataset_meta")
        cameras = self._cameras(meta)
        self._picture_stats = None if meta is None else renamed_stats(cameras, meta.stats)
        # The teacher and the projector draw random numbers of their own: the host's stream must not notice.
        with torch.random.fork_rng():
            torch.manual_seed(PROJECTOR_SEED)
            self.forcing = self._build_forcing(config.forcing, cameras, meta)
        self._forward_count, self._projector_ready = 0, False
        self._ratio: Tensor | None = None
        config.trains = weakref.ref(self)
        if config.use_peft:
            # A saved adapter is about to be put on all modules with certain names, "fc1" say. The projector
            # is none of them: it stays out of sight until the optimizer asks for what trains.
            self.__dict__["forcing"] = self._modules.pop("forcing")  # type: ignore[attr-defined]
        logging.getLogger(__name__).info(self.forcing.describe())

    def _cameras(self, meta: Any) -> dict[str, str]:
        """The policy's names of the cameras to align, and the data set's."""
        cameras, ours = self.config.forcing.cameras, list(self.config.image_features)
        if cameras is not None:
            return chosen_cameras(cameras, ours, None if meta is None else meta.camera_keys)
        there = cameras_in(self.config, ours if meta is None else meta.features)
        return {name: name for name in there or ours}

    def _build_forcing(self, forcing: ForcingConfig, cameras: dict[str, str], meta: Any) -> SpatialForcing:
        host = policy_host(self)
        source = FeatureSource(
            forcing,
            cameras,
            self.config.device,
            None if meta is None else Path(meta.root),
            packed=self.record.pictures is not None,
        )
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
            control=forcing.control,  # type: ignore[arg-type]
        )

    # ---- training --------------------------------------------------------------------------------------

    def forward(self, batch: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Any]]:
        """The host's loss plus, in training, the alignment loss; both are in the logs."""
        if not self.training:
            return super().forward(batch, *args, **kwargs)  # type: ignore[misc]
        if self._forward_count == 0:
            self._check_what_trains()
            if "forcing" in self.__dict__:
                raise SpatialForcingError(
                    "The optimizer does not know the projector. With an adapter that is continued, Spatial "
                    "Forcing needs --use_policy_training_preset=true."
                )
            if not self._projector_ready:  # the optimizer was made of parameters() and did not ask
                self._prepare_projector()
        pictures = self.feature_source.pictures(self, batch, self._picture_stats)
        host = self.forcing.host
        if host.locate is None and pictures.views != host.layout.views:
            self._use_views(pictures.views)
        with self.forcing.watch():
            action_loss, logs = super().forward(batch, *args, **kwargs)  # type: ignore[misc]
        seen = self.feature_source(batch, pictures)
        align_loss = self.forcing(
            seen,
            self.feature_source.affine_BV23(batch, pictures),
            picture_hw=None if self.forcing.published else pictures.sizes,
            present_BV=pictures.present_BV,
            views=pictures.places,
        )
        logs = {**(logs or {}), **self._scalars(action_loss.mean(), align_loss)}
        self.forcing.check_loss(logs["align_loss"], seen)
        self._forward_count += 1
        return action_loss + align_loss, logs

    def _scalars(self, action_loss: Tensor, align_loss: Tensor) -> dict[str, float]:
        """What is logged of this step, read from the device in one go."""
        values = {"action_loss": action_loss.detach(), **self.forcing.logs}
        every = self.config.forcing.ratio_every
        if every and self._forward_count % every == 0 and self.forcing.weight > 0:
            self._ratio = self.forcing.gradient_ratio(action_loss, align_loss).detach()
        if self._ratio is not None:
            values["gradient_ratio"] = self._ratio  # of the last measurement: LeRobot averages over a window
        numbers = torch.stack([value.float() for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))

    def _use_views(self, views: int) -> None:
        """Some hosts have tokens only for the cameras that are in the batch."""
        self.forcing.host = self.forcing.tap.host = policy_host(self, views)

    def _check_what_trains(self) -> None:
        """Before the first step: something that shapes the tapped tokens must train.

        The tap's own check is not enough here: in SmolVLA the state token is part of the tapped stream and
        trains, while no gradient of a visual token reaches anything.
        """
        tap = self.forcing.tap
        before = [*list(self.forcing.host.blocks)[: tap.depth], *self.record.upstream(self)]
        trains = [n for m in before for n, p in m.named_parameters() if p.requires_grad]
        if not trains and self.forcing.weight > 0:
            flags = self.record.unfreeze or "unfreeze the blocks before the tap"
            raise TapError(
                f"Nothing that shapes the visual tokens of {self.forcing.host.name} after block {tap.depth} "
                f"trains, so Spatial Forcing cannot act. Set {flags}; or train without forcing "
                "(--policy.forcing.weight=0)."
            )
        pretrained = self.record.language_model and self.record.pretrained(self.config)
        if trains and pretrained and not any("lora" in name for name in trains):
            logging.getLogger(__name__).warning(
                "Pretrained weights of %s train themselves, not LoRA beside them. Alignment with full "
                "fine-tuning has been reported to damage pretrained language models (the paper used LoRA): "
                "watch the action loss, lower forcing.weight, or use LoRA on the VLM.",
                self.forcing.host.name,
            )

    def get_optim_params(self) -> Any:
        """The host's parameters and the projector's, which continues from the run that is resumed, if any.

        LeRobot asks for them once before training, whichever way the policy was made. PEFT, which freezes
        everything it did not add, has been at work by then.
        """
        if "forcing" in self.__dict__:
            device = next(self.parameters()).device  # type: ignore[attr-defined]
            self.forcing = self.__dict__.pop("forcing").to(device)
        self._prepare_projector()
        return super().get_optim_params()  # type: ignore[misc]

    def _prepare_projector(self) -> None:
        self.forcing.requires_grad_(True)
        if self.config.pretrained_path is not None:
            self._restore_projector(Path(self.config.pretrained_path) / SIDE_FOLDER)
        self._projector_ready = True

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """LoRA on the host. The projector is none of PEFT's business: it is trained and saved as ever."""
        with self._without_forcing():
            return super().wrap_with_peft(*args, **kwargs)  # type: ignore[misc]

    # ---- checkpoints: the host's files, the projector beside them --------------------------------------

    def _save_pretrained(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        with self._without_forcing():
            plain = state_dict and {k: v for k, v in state_dict.items() if not k.startswith("forcing.")}
            super()._save_pretrained(save_directory, state_dict=plain)  # type: ignore[misc]
        self.save_projector(save_directory, state_dict)

    def save_projector(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        """Writes the projector and what it was trained toward beside a checkpoint, for resuming."""
        side = save_directory / SIDE_FOLDER
        side.mkdir(parents=True, exist_ok=True)
        everything = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        projector = {k.removeprefix("forcing."): v for k, v in everything.items() if k.startswith("forcing.")}
        save_file({k: v.contiguous() for k, v in projector.items()}, side / "projector.safetensors")
        record = asdict(self.config.forcing) | {
            "site": self._site(),
            "teacher_fingerprint": self.forcing.teacher.fingerprint,
            "teacher_licence": self.forcing.teacher.licence,
        }
        (side / "forcing.json").write_text(json.dumps(record, indent=2) + "\n")

    def name_plain_class(self, save_directory: Path) -> None:
        """Makes a saved adapter name the host's own class, which every machine has; PEFT names this one."""
        path = save_directory / "adapter_config.json"
        if not path.is_file():
            return
        adapter = json.loads(path.read_text())
        if adapter.get("auto_mapping") is not None:
            plain = self.plain_class
            adapter["auto_mapping"] = {
                "base_model_class": plain.__name__,
                "parent_library": plain.__module__,
            }
            path.write_text(json.dumps(adapter, indent=2, sort_keys=True))

    def _site(self) -> dict[str, Any]:
        """Where the projector reads."""
        host = self.forcing.host
        return {"host": host.name, "width": host.width, "depth": self.forcing.tap.depth}

    def _restore_projector(self, side: Path) -> None:
        if not side.is_dir():
            return
        saved = json.loads((side / "forcing.json").read_text())
        differing = self._differing(saved)
        if not differing:
            self.forcing.load_state_dict(load_file(side / "projector.safetensors"))
            logging.getLogger(__name__).info("The projector continues from %s.", side)
        elif not self.config.forcing.new_projector:
            there = "; ".join(f"{name}: {was} there, {now} here" for name, (was, now) in differing.items())
            raise SpatialForcingError(
                f"The projector of this checkpoint was trained for something else than is asked for now "
                f"({there}). To continue with it, give what is there. To keep the policy and start a new "
                "projector: --policy.forcing.new_projector=true."
            )

    def _differing(self, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
        """What a saved projector was trained for and what the present one is to be, where that differs.

        ``saved`` is the description beside it. That of an earlier version says less: the tap was where the
        host recommends it if no depth was given, and an option it does not know had its default.
        """
        host, forcing = self.forcing.host, self.config.forcing
        pairs = {}
        fingerprint = self.forcing.teacher.fingerprint
        if saved["teacher_fingerprint"] != fingerprint:
            pairs["features"] = (
                _features_of(saved, saved["teacher_fingerprint"]),
                _features_of(asdict(forcing), fingerprint),
            )
        here, default = self._site(), saved.get("depth") or host.default_depth
        there = saved.get("site", here | {"depth": default})
        pairs |= {f"tapped {name}": (there[name], here[name]) for name in here}
        known = asdict(ForcingConfig())
        pairs |= {name: (saved.get(name, known[name]), getattr(forcing, name)) for name in OF_THE_PROJECTOR}
        return {name: (was, now) for name, (was, now) in pairs.items() if was != now}

    def load_state_dict(self, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Loads the host's weights. A plain checkpoint has no projector; the present one stays."""
        registered = self._modules.get("forcing")  # type: ignore[attr-defined]
        present = {f"forcing.{k}": v for k, v in registered.state_dict().items()} if registered else {}
        return super().load_state_dict(present | dict(state_dict), *args, **kwargs)  # type: ignore[misc]

    @contextmanager
    def _without_forcing(self) -> Iterator[None]:
        forcing = self._modules.pop("forcing")  # type: ignore[attr-defined]
        try:
            yield
        finally:
            self._modules["forcing"] = forcing  # type: ignore[attr-defined]
