"""Spatial Forcing inside a LeRobot policy: the part that is the same for every host.

For a host with configuration ``XConfig`` and policy ``XPolicy`` the plug-in makes ``SfXConfig(XConfig)`` with
one more field, ``forcing``, and ``SfXPolicy(ForcedPolicy, XPolicy)``. Everything of the host is inherited.
Training adds the loss; evaluation and ``select_action`` are the host's own; a saved checkpoint has the host's
type and exactly the host's weights, with the projector beside it in ``spatial_forcing/`` for resuming.
"""

import logging
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lerobot_policy_spatial_forcing.cameras import check_renamed, chosen_cameras, said_rename_map
from lerobot_policy_spatial_forcing.feature_source import FeatureSource, episode_ends, sources_of
from lerobot_policy_spatial_forcing.forcing_config import (
    AlignmentConfig,
    ForcingConfig,
    ListedAlignment,
    future_of,
)
from lerobot_policy_spatial_forcing.projector_files import (
    SIDE_FOLDER,
    describe_projectors,
    name_plain_class,
    restore_projectors,
    save_projectors,
    side_folder_of,
)
from spatial_forcing import patches
from spatial_forcing.align import SpatialForcing
from spatial_forcing.alignment import Alignment
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.hosts.lerobot import cameras_in, policy_host
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.hosts.registry import RECORDS
from spatial_forcing.on_grid import Given
from spatial_forcing.patches.versions import is_sharded, renames_before_preprocessing
from spatial_forcing.tap import Host, TapError
from spatial_forcing.target import target_of

# The projector is initialised from this seed, so that turning forcing on never shifts the host's own random
# numbers.
PROJECTOR_SEED = 20251012


def stats_of_images(cameras: dict[str, str], stats: dict[str, Any]) -> dict[str, Any]:
    """The statistics that LeRobot normalises the images with, by the policy's names of the cameras.

    LeRobot 0.6.1 looks for those of a renamed camera under its new name, and leaves its images as they are
    where the data set has none of that name: None here. Its next release renames the statistics, too.

    Args:
        cameras: the policy's names of cameras, and for each the data set's.
        stats: the data set's.
    """
    renamed = {ours: theirs for ours, theirs in cameras.items() if ours != theirs}
    if not renamed:
        return stats
    if renames_before_preprocessing():
        return stats | {ours: stats[theirs] for ours, theirs in renamed.items() if theirs in stats}
    return dict.fromkeys(renamed) | stats


def _alignment(entry: AlignmentConfig, source: FeatureSource) -> Alignment:
    stats = target_of(source.teacher).stats if entry.standardize else None
    if entry.standardize and stats is None:
        raise SpatialForcingError(
            f"forcing.standardize needs the mean and deviation of the features of {entry.teacher!r}, "
            "which come with a feature cache: give forcing.cache, or set forcing.standardize=false."
        )
    return Alignment(
        entry.site,
        source.teacher,
        entry.loss,
        entry.loss_weight,
        layer=source.layer_of(entry),
        name=entry.name if isinstance(entry, ListedAlignment) else None,
        norm=entry.norm,  # type: ignore[arg-type]
        position_embedding=entry.position_embedding,
        standardize=stats,
        published=entry.published,
        control=entry.control,  # type: ignore[arg-type]
        points=entry.points,  # type: ignore[arg-type]
        token_weights=entry.token_weights is not None,
        projector=entry.projector,  # type: ignore[arg-type]
        spatial_norm=entry.spatial_norm,
        shares=entry.shares if isinstance(entry, ListedAlignment) else None,
        hidden_share=entry.hidden_share,
    )


class ForcedPolicy:
    """Mixin that adds the alignment loss to a LeRobot policy. Put it before the policy class."""

    record: ClassVar[PolicyRecord]
    plain_class: ClassVar[type]

    def __init__(self, config: Any, *args: Any, **kwargs: Any):
        patches.for_training(
            stored=config.forcing.stored,
            names=config.forcing.cameras is not None,
            packed=self.record.images is not None,
        )
        super().__init__(config, *args, **kwargs)  # type: ignore[call-arg]
        meta = kwargs.get("dataset_meta")
        cameras = self._cameras(meta)
        self._image_stats = None if meta is None else stats_of_images(cameras, meta.stats)
        # The teacher and the projector draw random numbers of their own: the host's stream must not notice.
        with torch.random.fork_rng():
            torch.manual_seed(PROJECTOR_SEED)
            self.forcing = self._build_forcing(config.forcing, cameras, meta)
        self._forward_count, self._projector_ready = 0, False
        # Of the last measurement, logged until the next: LeRobot averages over a window.
        self._diagnostics: dict[str, Tensor] = {}
        self._warned_of_pull = False
        config.trains = weakref.ref(self)
        if config.use_peft:
            # A saved adapter is about to be put on all modules with certain names, "fc1" say. The projector
            # is none of them: it stays out of sight until the optimizer asks for what trains.
            self.__dict__["forcing"] = self._modules.pop("forcing")  # type: ignore[attr-defined]
        logging.getLogger(__name__).info(self.forcing.describe() + future_of(config.forcing.entries()))

    def _cameras(self, meta: Any) -> dict[str, str]:
        """Maps the policy's names of the cameras to align to the data set's."""
        cameras, ours = self.config.forcing.cameras, list(self.config.image_features)
        if cameras is not None:
            chosen = chosen_cameras(cameras, ours, None if meta is None else meta.camera_keys)
        else:
            there = cameras_in(self.config, ours if meta is None else meta.features)
            chosen = {name: name for name in there or ours}
        if meta is not None:
            wanted = ours if cameras is None else chosen
            check_renamed(chosen, meta.camera_keys, said_rename_map(), wanted)
        return chosen

    def _host(self, views: int | None = None) -> Host:
        host, late = policy_host(self, views), self.config.forcing.one_token_late
        if late and not self.record.published_late:
            having = ", ".join(kind for kind, record in RECORDS.working().items() if record.published_late)
            raise SpatialForcingError(
                f"forcing.one_token_late is for policies that the paper's public code reads so ({having}); "
                f"it does not read {self.record.type} late."
            )
        return host.one_token_late() if late else host

    def _build_forcing(self, forcing: ForcingConfig, cameras: dict[str, str], meta: Any) -> SpatialForcing:
        host, entries = self._host(), forcing.entries()
        self.feature_sources = sources_of(
            entries,
            cameras=cameras,
            device=self.config.device,
            dataset_root=None if meta is None else Path(meta.root),
            episode_ends=None if meta is None else episode_ends(meta),
            packed=self.record.images is not None,
            named=forcing.cameras is not None,
        )
        alignments = [
            _alignment(entry, source) for entry, source in zip(entries, self.feature_sources, strict=True)
        ]
        return SpatialForcing(host, alignments)

    @property
    def feature_source(self) -> FeatureSource:
        """The feature source that takes a step's images: one that needs their names, if there is one."""
        return next((one for one in self.feature_sources if one.needs_names), self.feature_sources[0])

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
                self._prepare_projector_late()
        shown = self.feature_source.shown(self, batch, self._image_stats)
        host = self.forcing.host
        if host.locate is None and shown.views != host.layout.views:
            self.forcing.moved_to(self._host(shown.views))  # tokens only for cameras in the batch
        with self.forcing.watch():
            action_loss, logs = super().forward(batch, *args, **kwargs)  # type: ignore[misc]
        given = self.given(batch, shown)
        every = self.config.forcing.diagnostics_every
        due = every > 0 and self._forward_count % every == 0
        align_loss = self.forcing(given, diagnose=due)
        if due:
            self._diagnostics = self.forcing.diagnostics | self._pull(action_loss.mean(), align_loss)
        logs = {**(logs or {}), **self._scalars(action_loss.mean())}
        self.forcing.check_loss(logs["align_loss"], given)
        self._forward_count += 1
        return action_loss + align_loss, logs

    def given(self, batch: dict[str, Any], shown: Any) -> dict[str, Given]:
        """The inputs of every alignment for a batch, by name; alignments with one source share them."""
        by_source = {id(source): source.given(batch, shown) for source in dict.fromkeys(self.feature_sources)}
        names = [part.name for part in self.forcing.parts]
        return {name: by_source[id(s)] for name, s in zip(names, self.feature_sources, strict=True)}

    def _scalars(self, action_loss: Tensor) -> dict[str, float]:
        """The numbers logged for this step, copied from the device in one transfer."""
        values = {"action_loss": action_loss.detach(), **self.forcing.logs, **self._diagnostics}
        # Gradients at no tap are NaN on the CPU.
        numbers = torch.stack([value.float().to(action_loss.device) for value in values.values()]).tolist()
        return dict(zip(values, numbers, strict=True))

    def _pull(self, action_loss: Tensor, align_loss: Tensor) -> dict[str, Tensor]:
        """Ratio and cosine of both losses' gradients at the taps; empty where they cannot be measured."""
        # FSDP2 takes gathered weights away after a backward, and this one would be inside the forward.
        if not self.forcing.acts or is_sharded(self):  # type: ignore[arg-type]
            return {}
        try:
            ratio, cosine = self.forcing.pull(action_loss, align_loss)
        except TapError as error:
            if not self._warned_of_pull:
                logging.getLogger(__name__).warning(
                    "%s gradient_ratio and gradient_cosine are left out.", error
                )
            self._warned_of_pull = True
            return {}
        return {"gradient_ratio": ratio, "gradient_cosine": cosine}

    def _check_what_trains(self) -> None:
        """Checks before the first step that something upstream of the tapped tokens is trainable.

        The tap's own check is not enough here: in SmolVLA the state token is part of the tapped stream and
        trains, while no gradient of a visual token reaches anything.
        """
        shaping = list[str]()
        for part in self.forcing.parts:
            site = part.tap.site
            before = [*site.before, *([] if site.in_vision else self.record.upstream(self))]
            trains = [n for m in before for n, p in m.named_parameters() if p.requires_grad]
            if not trains and part.acts:
                unfreeze = self.forcing.host.vision.unfreeze if site.in_vision else self.record.unfreeze
                flags = unfreeze or "unfreeze the blocks before the tap"
                raise TapError(
                    f"Nothing that shapes the visual tokens of {site.host} {site.label} trains, so Spatial "
                    f"Forcing cannot act. Set {flags}; or train without forcing "
                    "(--policy.forcing.loss_weight=0)."
                )
            shaping += [] if site.in_vision else trains
        pretrained = self.record.language_model and self.record.pretrained(self.config)
        if shaping and pretrained and not any("lora" in name for name in shaping):
            logging.getLogger(__name__).warning(
                "Pretrained weights of %s train themselves, not LoRA beside them. Alignment with full "
                "fine-tuning has been reported to damage pretrained language models (the paper used LoRA): "
                "watch the action loss, lower forcing.loss_weight, or use LoRA on the VLM.",
                self.forcing.host.name,
            )
        self._warn_of_frozen_actions()

    def _warn_of_frozen_actions(self) -> None:
        """Warns if no module that is named after actions trains: LoRA that targets the language model alone
        freezes them, and with them LeRobot's own default targets of SmolVLA, pi0 and pi0.5."""
        parameters = self.named_parameters()  # type: ignore[attr-defined]
        of_actions = {n: p for n, p in parameters if "action" in n and not n.startswith("forcing.")}
        if of_actions and not any(p.requires_grad for p in of_actions.values()):
            frozen = sorted({word for name in of_actions for word in name.split(".") if "action" in word})
            logging.getLogger(__name__).warning(
                "Nothing of %s trains: what turns tokens into actions stays as it is. With LoRA, name it in "
                "--peft.target_modules or --peft.full_training_modules (docs/hosts has the flags).",
                ", ".join(frozen),
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
            side = side_folder_of(self.config.pretrained_path, self.config.pretrained_revision)
            restore_projectors(self.forcing, self.config.forcing, side)
        self._projector_ready = True

    def _prepare_projector_late(self) -> None:
        if is_sharded(self) and self.config.pretrained_path is not None:  # type: ignore[arg-type]
            raise SpatialForcingError(
                "The projector cannot continue where FSDP2 has sharded it already: from a checkpoint, "
                "Spatial Forcing with FSDP2 needs --use_policy_training_preset=true."
            )
        self._prepare_projector()

    def wrap_with_peft(self, *args: Any, **kwargs: Any) -> Any:
        """Puts LoRA on the host. PEFT does not touch the projector: it is trained and saved as always."""
        with self._without_forcing():
            return super().wrap_with_peft(*args, **kwargs)  # type: ignore[misc]

    # ---- checkpoints: the host's files, the projector beside them --------------------------------------

    def _save_pretrained(self, save_directory: Path, **gathered: Any) -> None:
        """Writes the host's files and the projector. If the policy is sharded, all processes must call it.

        Args:
            gathered: the weights that LeRobot 0.6.1 gathered from a sharded policy, as ``state_dict``; its
                next release passes nothing and gathers inside.
        """
        everything = gathered.get("state_dict")
        if everything is not None:
            gathered["state_dict"] = {k: v for k, v in everything.items() if not k.startswith("forcing.")}
        with self._without_forcing():
            super()._save_pretrained(save_directory, **gathered)  # type: ignore[misc]
        self._save_projector(save_directory, everything)

    def _save_projector(self, save_directory: Path, state_dict: dict[str, Tensor] | None = None) -> None:
        everything = self.state_dict() if state_dict is None else state_dict  # type: ignore[attr-defined]
        ours = {k.removeprefix("forcing."): v for k, v in everything.items() if k.startswith("forcing.")}
        save_projectors(self.forcing, self.config.forcing, ours, save_directory / SIDE_FOLDER)

    def configuration_saved(self, save_directory: Path) -> None:
        """Writes what belongs beside a configuration where LeRobot saves the weights without the policy."""
        if self.config.use_peft:  # PEFT saves the adapter
            self._save_projector(save_directory)
            name_plain_class(save_directory, self.plain_class)
        elif is_sharded(self) and "forcing" in self._modules:  # type: ignore[attr-defined,arg-type]
            # Not on the way of _save_pretrained: it is saved as shards, the projector among them.
            side = save_directory / SIDE_FOLDER
            describe_projectors(self.forcing, self.config.forcing, side, sharded=True)

    def load_state_dict(self, state_dict: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """Loads the host's weights. A plain checkpoint has no projector; the current one is kept."""
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
