"""Spatial Forcing (arXiv 2510.12276): pull a policy's visual tokens toward a frozen 3D teacher's features.

    L = L_action + sum over alignments of w(step) * L_align,     L_align = loss(P(x), y) over valid tokens

x: visual tokens of the host at a site; P: a small projector, thrown away after training (``projector.py``);
y: the target's features of the same images plus a sinusoidal position embedding, resampled to the site's
token grid (``on_grid.py``); loss: 1 - cosine unless told otherwise (``losses/``); w: a number or a schedule
of the training step (``schedules/``). The published objective is one alignment.

Shapes: B batch, V views, H W rows and columns of a grid, N = V*h*w visual tokens of the host, D width of the
host, C width of the teacher.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from spatial_forcing.alignment import Alignment, AlignmentOptions, Part, features_of, parts_of
from spatial_forcing.diagnostics import compare_tokens
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.features import Features
from spatial_forcing.mixture import MixedTap
from spatial_forcing.on_grid import Given, GridTarget, ImageSize
from spatial_forcing.pull import Pull, pull
from spatial_forcing.schedules import Weight
from spatial_forcing.site import Host
from spatial_forcing.tap import Tap
from spatial_forcing.target import HasWidth, Target

# What a step gives: to the only alignment, to all alike, or to each by its name.
Images = Tensor | Features | Mapping[str, Tensor | Features | Given]

STEP_KEY = "training_step"


class SpatialForcing(nn.Module):
    """Spatial Forcing objective: the sum of a host's alignment losses; its parameters are the projectors'.

        sf = SpatialForcing(host_of(vla), teacher=load_teacher("vggt-1b"), weight=0.5)
        optimizer.add_param_group({"params": sf.parameters()})
        with sf.watch():
            loss = action_loss(vla, batch)
        loss = loss + sf(images)

    Several alignments are given as a list: ``SpatialForcing(host, [Alignment("blocks.12", teacher), ...])``.

    The host is tapped from construction to :meth:`detach`; its class, state dict and outputs stay as they
    are. Targets are frozen and not registered: they are neither saved nor trained.

    With several processes the projector's gradients must be averaged as the host's are: put host and
    SpatialForcing into one module before wrapping it in DDP, as the LeRobot plug-in does.

    Args:
        host: from ``host_of(model)``, or your own record.
        teacher: the target of the only alignment; or a list of alignments, and then nothing else is given.
        weight: of the only alignment; 0.5 if None.
        options: of the only alignment.

    Attributes:
        parts: the alignments at work.
        logs: numbers of the last step, detached: of one alignment ``align_loss`` (without the weight),
            ``cosine``, ``valid_fraction`` and, with a schedule, ``align_weight``; of several these as
            ``<name>/<number>``, and ``align_loss``, their sum, and ``weighted_align_loss``, what is returned.
        diagnostics: numbers of the last step with ``diagnose=True``, under names made the same way: see
            :func:`spatial_forcing.diagnostics.compare_tokens`.

    Raises:
        SpatialForcingError: a number out of its range, a norm or loss that does not exist, statistics that do
            not fit the teacher, or alignments of one name.
        TapError: no such site.
    """

    def __init__(
        self,
        host: Host,
        teacher: Target | HasWidth | Sequence[Alignment],
        weight: Weight | None = None,
        **options: Unpack[AlignmentOptions],
    ):
        super().__init__()
        if not isinstance(host, Host):
            raise SpatialForcingError(f"The host is a Host, from host_of(model); got {type(host).__name__}.")
        if isinstance(teacher, list | tuple):
            if weight is not None or options:
                raise SpatialForcingError("Weight and options are said in each of the alignments.")
            alignments = teacher
        else:
            more: dict[str, Any] = {"weight": 0.5 if weight is None else weight, **options}
            alignments = [Alignment(more.pop("site", None), teacher, **more)]  # type: ignore[arg-type]
        self.host = host
        # Parts hold targets and are no modules: a teacher must not end up in checkpoints, optimizers or
        # .train().
        self.parts = parts_of(host, alignments)
        with ExitStack() as undo:
            undo.callback(self.detach)
            self.grids = nn.ModuleDict({part.name: part.new_grid() for part in self.parts})
            if len(self.parts) == 1:
                self.projector = self.parts[0].new_projector()
            else:
                owners = [part for part in self.parts if part.alignment.shares is None]
                self.projectors = nn.ModuleDict({part.name: part.new_projector() for part in owners})
            undo.pop_all()
        if any(part.scheduled for part in self.parts):
            self.register_buffer(STEP_KEY, torch.zeros((), dtype=torch.long))
        self._step: int | None = 0  # None: the buffer knows
        self.logs: dict[str, Tensor] = {}
        self.diagnostics: dict[str, Tensor] = {}
        self._looked_at_features = False

    # ---- what it consists of ---------------------------------------------------------------------------

    @property
    def teacher(self) -> Target | HasWidth:
        """The target of the first alignment, as it was given."""
        return self.parts[0].alignment.target

    @property
    def tap(self) -> Tap | MixedTap:
        """The tap of the first alignment."""
        return self.parts[0].tap

    @property
    def taps(self) -> list[Tap | MixedTap]:
        """All taps, one for every site."""
        return list({part.tap.site.name: part.tap for part in self.parts}.values())

    @property
    def weight(self) -> float:
        """The loss weight at the next step; of several alignments the sum."""
        return sum(part.weight_at(self.step) for part in self.parts)

    @property
    def acts(self) -> bool:
        """Whether any alignment is active: not all weights are zero at every step."""
        return any(part.acts for part in self.parts)

    def projector_of(self, name: str) -> nn.Module:
        """The projector of an alignment."""
        if len(self.parts) == 1:
            return self.projector
        return self.projectors[next(part.projector_name for part in self.parts if part.name == name)]

    @property
    def step(self) -> int:
        """Number of training steps so far: calls in training mode with gradients. Schedules are functions of
        it, and with a schedule it is in the state dict. Set it where your loop counts otherwise."""
        if self._step is None:
            self._step = int(self.get_buffer(STEP_KEY))
        return self._step

    @step.setter
    def step(self, step: int) -> None:
        self._step = int(step)
        if STEP_KEY in self._buffers:
            self.get_buffer(STEP_KEY).fill_(self._step)

    def moved_to(self, host: Host) -> None:
        """Moves the taps to the sites of another record of the same modules, with another number of views."""
        self.host = host
        for tap in self.taps:
            tap.moved_to(host)

    # ---- a step ----------------------------------------------------------------------------------------

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Records the host's forward inside the ``with`` block; the first one counts if there are several."""
        with ExitStack() as stack:
            for tap in self.taps:
                stack.enter_context(tap.watch())
            yield

    def forward(
        self,
        images: Images,
        affine_BV23: Tensor | None = None,
        *,
        image_hw: ImageSize | None = None,
        present_BV: Tensor | None = None,
        views: Sequence[int] | None = None,
        diagnose: bool = False,
    ) -> Tensor:
        """The sum of w * L_align for the watched forward.

        Args:
            images: images_BV3HW in [0, 1], views in the host's order, for the targets to look at; or Features
                from a cache; or, for a ``FeatureStore``, the indices of the frames (B,). Of several
                alignments that are not given the same, a mapping of their names. Fewer views than the host
                has: the missing ones (the last, without ``views``) are left out of the loss.
            affine_BV23: from the host's image to the teacher's, in unit coordinates, where they differ
                (random crops, flips and rotations of the host's copy): see ``spatial_forcing.grid``.
            image_hw: height and width in pixels of the host's image (or a pair per view), where ``images``
                does not say: with Features, for a host that pads; with crops that change the aspect ratio.
            present_BV: bool, False where a sample lacks a view; all are there if None.
            views: which of the host's views ``images`` shows, in its order, counted from 0; the first ones if
                None. The others are left out of the loss.
            diagnose: whether to compute :attr:`diagnostics`, which takes time, in this step.

        Returns:
            A scalar in float32 with gradient to the projectors and the host; :attr:`logs` holds its parts.
            Where no token is valid the loss is 0, ``valid_fraction`` 0 and ``cosine`` NaN.

        Raises:
            TapError: a tap never fired, carries no gradient, or found tokens that do not fit the layout.
            SpatialForcingError: images or features do not fit the host or the teacher, or valid features are
                not finite; on an accelerator only the first call checks the latter (:meth:`check_loss`).
        """
        given = self._given(images, affine_BV23, image_hw, present_BV, views)
        weights = [part.weight_at(self.step) for part in self.parts]
        visual = [part.tap.visual_BND() for part in self.parts]
        for part, weight in zip(self.parts, weights, strict=True):
            if weight > 0:
                part.tap.require_gradient()
        features = features_of(self.parts, given)
        terms, logs, diagnostics = [], [], []
        for part, weight, visual_BND in zip(self.parts, weights, visual, strict=True):
            target_BNC, valid_BN, weight_BN = self._on_grid(part, features, given, batch=len(visual_BND))
            how = part.tap.layout, part.alignment.hidden_share
            projected_BNC = self.projector_of(part.name)(visual_BND, valid_BN, *how)
            compared = (projected_BNC, target_BNC, valid_BN)
            weighted = compared if weight_BN is None else (*compared, weight_BN)
            align = part.loss(*weighted)
            look = align.device.type == "cpu" or not self._looked_at_features
            if look and not math.isfinite(align.item()):
                features[part.name].check_finite()
            terms.append(weight * align)
            logs.append(part.numbers(align, weighted, weight))
            if diagnose:
                diagnostics.append(compare_tokens(visual_BND, *compared, part.tap.layout.views))
        self._looked_at_features = True
        total = terms[0] if len(terms) == 1 else torch.stack(terms).sum()
        if diagnose:
            self.diagnostics = self._named(diagnostics)
        self._note(logs, total)
        return total

    def _note(self, logs: list[dict[str, Tensor]], total: Tensor) -> None:
        """Stores the logs of a forward pass, and counts the step in training mode."""
        self.logs = self._named(logs)
        if len(logs) > 1:
            self.logs["align_loss"] = torch.stack([numbers["align_loss"] for numbers in logs]).sum()
            self.logs["weighted_align_loss"] = total.detach()
        if self.training and torch.is_grad_enabled():
            self.step += 1

    @torch.no_grad()
    def target(
        self,
        images: Images,
        affine_BV23: Tensor | None = None,
        *,
        image_hw: ImageSize | None = None,
        present_BV: Tensor | None = None,
        views: Sequence[int] | None = None,
        of: str | None = None,
    ) -> tuple[Tensor, Tensor]:
        """target_BNC (float32) and valid_BN on the host's grid, of the alignment named ``of`` (the first if
        None); the other arguments as in :meth:`forward`."""
        given = self._given(images, affine_BV23, image_hw, present_BV, views)
        parts = {part.name: part for part in self.parts}
        if of is not None and of not in parts:
            raise UnknownNameError("alignment", of, parts)
        part = self.parts[0] if of is None else parts[of]
        return self._on_grid(part, features_of([part], given), given)[:2]

    def check_loss(self, align_loss: float, images: Images) -> None:
        """Raises :class:`SpatialForcingError` if an alignment loss is not finite because features are not.

        ``logs["align_loss"]`` costs nothing to check where logs are read anyway. A host that has diverged is
        no error here.

        Args:
            align_loss: the value of a step.
            images: what :meth:`forward` was given in that step.
        """
        if not math.isfinite(align_loss):
            for features in features_of(self.parts, self._given(images)).values():
                features.check_finite()

    def pull(self, action_loss: Tensor, align_loss: Tensor) -> Pull:
        """Ratio and cosine of the two losses' gradients at the tapped streams of all sites together.

        Call it every so many steps, before ``backward()``; see :func:`spatial_forcing.pull.pull`.
        """
        return pull(action_loss, align_loss, self.taps)

    def gradient_ratio(self, action_loss: Tensor, align_loss: Tensor) -> Tensor:
        """Gradient norm of the alignment loss over that of the action loss: the ratio of :meth:`pull`."""
        return self.pull(action_loss, align_loss).ratio

    def detach(self) -> None:
        """Removes the taps: the host's modules and hooks are what they were. Call it when training ends."""
        for tap in self.taps:
            tap.detach()

    def describe(self) -> str:
        """Summary of what is aligned with what, and what trains: one line, or a heading and several."""
        lines = []
        for part in self.parts:
            projector = self.projector_of(part.name)
            lines.append(part.describe(sum(p.numel() for p in projector.parameters())))
        if len(lines) == 1:
            return f"Spatial Forcing: {lines[0]}"
        named = [f"  {part.name}: {line}" for part, line in zip(self.parts, lines, strict=True)]
        return "\n".join([f"Spatial Forcing: {len(lines)} alignments", *named])

    # ---- inside ----------------------------------------------------------------------------------------

    def _given(self, images: Images, *how: Any) -> dict[str, Given]:
        """The inputs of every alignment, by its name."""
        names = [part.name for part in self.parts]
        each = images if isinstance(images, Mapping) else dict.fromkeys(names, images)
        for name in each:
            if name not in names:
                raise UnknownNameError("alignment", name, names)
        if missing := [name for name in names if name not in each]:
            raise SpatialForcingError(f"Nothing was given to the alignments {', '.join(missing)}.")
        return {name: one if isinstance(one, Given) else Given(one, *how) for name, one in each.items()}

    def _on_grid(
        self,
        part: Part,
        features: Mapping[str, Features],
        given: Mapping[str, Given],
        batch: int | None = None,
    ) -> GridTarget:
        return self.grids[part.name](
            features[part.name],
            given[part.name],
            part.tap.layout,
            stored_sizes=part.target.image_sizes,
            batch=batch,
        )

    def _named(self, numbers: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Logs of all alignments in one mapping; of several, with the alignment's name as prefix."""
        if len(numbers) == 1:
            return numbers[0]
        pairs = zip(self.parts, numbers, strict=True)
        return {f"{part.name}/{key}": value for part, of_part in pairs for key, value in of_part.items()}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Loads a state that lacks the step (none was saved), or has one without a schedule (any more)."""
        key = f"{prefix}{STEP_KEY}"
        if STEP_KEY in self._buffers:
            state_dict.setdefault(key, self.get_buffer(STEP_KEY))
            self._step = None
        elif key in state_dict:
            self._step = int(state_dict.pop(key))
        super()._load_from_state_dict(state_dict, prefix, *args)
