"""Doctor: health check of a training command, made at the first step of LeRobot's trainer.

Shapes: B batch, V views, H W pixels.
"""

import logging
import random
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from spatial_forcing import patches
from spatial_forcing.alignment import Part, features_of
from spatial_forcing.check import check_host
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.features import Features
from spatial_forcing.flags import read_config
from spatial_forcing.hosts.lerobot import ShownImages, policy_host
from spatial_forcing.hosts.shown import shown
from spatial_forcing.rehearsal import FirstStep, first_step
from spatial_forcing.train_command import check_output


@dataclass
class Findings:
    """Findings of the doctor: ``wrong`` stops training or makes it pointless, ``odd`` deserves a look."""

    facts: dict[str, str] = field(default_factory=dict)
    drawing: str = ""
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def examine(arguments: list[str], console: Any) -> bool:
    """Prints a health report of a training command. Returns whether training could start.

    Args:
        arguments: flags of lerobot-train; see :func:`spatial_forcing.rehearsal.training_flags`.
        console: of rich.

    Raises:
        SpatialForcingError: training would not reach its first step.
    """
    return examine_training(read_config(arguments), console, arguments)


def examine_training(config: Any, console: Any, arguments: list[str] | None = None) -> bool:
    """Prints a health report of a training configuration. Returns whether training could start."""
    refused = _refused_output(config)
    found = diagnose(first_step(config, arguments))
    found.wrong += refused
    console.rule("Spatial Forcing doctor")
    console.print(found.drawing, highlight=False, markup=False)
    for name, value in found.facts.items():
        console.print(f"[bold]{name:<24}[/]", end="")
        console.print(value, highlight=False, markup=False)
    for kind, colour, messages in (("odd", "yellow", found.odd), ("wrong", "red", found.wrong)):
        for message in messages:
            console.print(f"[{colour}]{kind}:[/] ", end="")
            console.print(message, highlight=False, markup=False)
    if not found.wrong and not found.odd:
        console.print("[green]Nothing looks wrong.[/]")
    return not found.wrong


# ---- looking -----------------------------------------------------------------------------------------------


def diagnose(step: FirstStep) -> Findings:
    """Runs a training step with and without forcing and the perturbation check; returns the findings.

    Every error becomes a finding. The policy keeps its weights.
    """
    found, policy = Findings(), step.policy
    policy.train()
    with _warnings(found):
        for look in (_look_at_parts, _look_at_step, _look_at_tokens, _look_at_cost):
            try:
                look(found, step)
            except Exception as error:
                ours = isinstance(error, SpatialForcingError)
                message = str(error) if ours else f"{type(error).__name__}: {error}"
                if message not in found.wrong:
                    found.wrong.append(message)
            finally:
                policy.train()
                policy.zero_grad(set_to_none=True)
            if (
                found.wrong and look is not _look_at_step
            ):  # a step that fails still has its token indices to look at
                break
    drawn = {tap.site.name: tap.layout.draw() for tap in policy.forcing.taps}
    found.drawing = "\n".join(text if len(drawn) == 1 else f"{name}: {text}" for name, text in drawn.items())
    return found


def _refused_output(config: Any) -> list[str]:
    """Why training could not write where the configuration says, if so. The first step needs no folder."""
    try:
        check_output(config)
    except SpatialForcingError as error:
        return [str(error)]
    return []


def _look_at_parts(found: Findings, step: FirstStep) -> None:
    policy, host = step.policy, step.policy.forcing.host
    shown = _images(step)
    sizes = ", ".join(f"{height} x {width}" for height, width in shown.sizes)
    trains = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total, projector = (sum(p.numel() for p in module.parameters()) for module in (policy, policy.forcing))
    found.facts |= {
        "host": f"{host.name}, {len(host.blocks)} blocks, width {host.width}",
        "token sequence": policy.record.sequence,
        "images": f"{sizes} pixels (height x width), as the host gets them",
        "trainable parameters": f"{trains:,} of {total:,}, {projector:,} of them the projector",
    }
    for part in policy.forcing.parts:
        target = part.target
        found.facts |= {
            _of(policy, "tap", part): f"{part.tap.site.label} ({part.tap.site.name})",
            _of(policy, "teacher", part): f"width {target.width}; {target.licence}, fingerprint "
            f"{part.fingerprint}",
        }
        if len(policy.forcing.parts) > 1:
            says = f"loss {part.alignment.loss}, weight {part.alignment.weight}"
            found.facts[_of(policy, "alignment", part)] = says
    if len(shown.images) < shown.views:
        found.odd.append(
            f"The host has tokens for {shown.views} views, {len(shown.images)} are aligned: the others "
            "are not in the batch or not chosen."
        )
    features = _features(step)
    for part in policy.forcing.parts:
        _look_at_features(found, step, part, features[part.name])


def _of(policy: Any, fact: str, part: Part) -> str:
    """Name of a fact in the report; with the alignment's name if there are several."""
    return fact if len(policy.forcing.parts) == 1 else f"{fact} of {part.name}"


def _look_at_features(found: Findings, step: FirstStep, part: Part, features: Features) -> None:
    forcing, layout, tokens_BVHWC = step.policy.forcing, part.tap.layout, features.tokens_BVHWC
    rows, cols = tokens_BVHWC.shape[2:4]
    teacher = _of(step.policy, "teacher", part)
    found.facts[teacher] = f"{rows} x {cols} tokens per view, {found.facts[teacher]}"
    grid = forcing.grids[part.name]
    tokens = ((tokens_BVHWC.float() - grid.mean_C) / grid.std_C).flatten(0, -2)
    common = torch.nn.functional.cosine_similarity(tokens, tokens.mean(0, keepdim=True)).mean().item()
    how = "as they are" if part.alignment.standardize is None else "standardised"
    found.facts[f"{teacher}'s common part"] = f"cosine of a token to the mean token: {common:.2f}, {how}"
    if common > 0.8:
        found.odd.append(
            "The teacher's tokens share a large common part, so a cosine is high without learning anything. "
            "Try a cache, whose features are standardised (unless forcing.standardize=false)."
        )
    if rows * cols < layout.rows * layout.cols:
        found.odd.append(
            f"The teacher's grid ({rows} x {cols}) is coarser than the host's ({layout.rows} x "
            f"{layout.cols}): raise its resolution."
        )


def _images(step: FirstStep) -> ShownImages:
    """The images of the batch that are aligned, as the host gets them."""
    policy = step.policy
    return policy.feature_source.shown(policy, step.batch, policy._image_stats)


def _features(step: FirstStep) -> dict[str, Features]:
    """The teacher features of the batch for every alignment, online or stored."""
    policy = step.policy
    return features_of(policy.forcing.parts, policy.given(step.batch, _images(step)))


def _look_at_step(found: Findings, step: FirstStep) -> None:
    policy = step.policy
    policy.config.forcing.diagnostics_every = 1
    with step.autocast():
        loss, logs = policy.forward(step.batch)
    loss.mean().backward()
    policy.config.forcing.diagnostics_every = 0  # it is no part of what a step costs
    parts, ratio = policy.forcing.parts, logs.get("gradient_ratio")
    for part in parts:
        prefix = "" if len(parts) == 1 else f"{part.name}/"
        valid, of = logs[f"{prefix}valid_fraction"], "" if len(parts) == 1 else f" of {part.name}"
        found.facts[_of(policy, "valid tokens", part)] = f"{valid:.0%}"
        found.facts[_of(policy, "cosine at start", part)] = f"{logs[f'{prefix}cosine']:.3f}"
        if valid == 0:
            found.wrong.append(f"No token{of} is valid: the alignment loss is zero and trains nothing.")
        elif valid < 0.5:
            found.odd.append(
                f"Only {valid:.0%} of the visual tokens{of} are valid: padding or missing views take "
                "the rest."
            )
    if ratio is not None:
        found.facts["gradient ratio at tap"] = (
            f"{ratio:.3f} (alignment over action, weight {policy.forcing.weight})"
        )
        if ratio > 10:
            found.odd.append(
                f"The alignment pulls {ratio:.0f} times as hard as the action loss; try a smaller weight."
            )
    grads = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
    broken = [name for name, grad in grads.items() if not grad.isfinite().all()]
    if broken:
        found.wrong.append(f"The gradient is not finite, of {len(broken)} parameters, {broken[0]} first.")


def _look_at_tokens(found: Findings, step: FirstStep) -> None:
    """Runs the perturbation check through the policy's own preprocessing."""
    policy = step.policy.eval()
    names = {step.rename_map.get(key, key): key for key in step.raw}
    if policy.record.images is not None:
        patches.track_groot_crops()
    seen = shown(policy, _preprocessed(step, dict(step.raw)))
    affine_V23 = None if seen.affine_BV23 is None else seen.affine_BV23[0]

    def forward(images: list[Tensor]) -> None:
        raw = dict(step.raw)
        for camera, image_B3HW in zip(seen.cameras, images, strict=True):
            raw[names[camera]] = _latest(raw[names[camera]], image_B3HW)
        batch = _preprocessed(step, raw)
        with step.autocast():
            policy.forward(batch)

    images = [_latest(step.raw[names[camera]]) for camera in seen.cameras]
    host = policy_host(policy, seen.views)
    for stack in sorted({part.tap.site.name.partition(".")[0] for part in policy.forcing.parts}):
        report = check_host(host, forward, images, affine_23=affine_V23, site=f"{stack}.0")
        where = "" if stack == "blocks" else f" ({stack} encoder)"
        if report.ok:
            found.facts[f"perturbation check{where}"] = str(report)
        else:
            (found.odd if report.verdict == "unclear" else found.wrong).append(f"{report}{where}")


def _latest(images: Tensor, instead_B3HW: Tensor | None = None) -> Tensor:
    """The last image of a history, which the host reads; or the history with that image replaced."""
    if instead_B3HW is None:
        return images[:, -1] if images.ndim == 5 else images
    if images.ndim == 4:
        return instead_B3HW
    return torch.cat([images[:, :-1], instead_B3HW[:, None]], dim=1)


def _preprocessed(step: FirstStep, raw: dict[str, Any]) -> dict[str, Any]:
    """Preprocesses a batch with fixed random draws (GR00T's crop)."""
    state = random.getstate()
    random.seed(0)
    try:
        return step.preprocess(raw)
    finally:
        random.setstate(state)


def _look_at_cost(found: Findings, step: FirstStep) -> None:
    policy = step.policy

    def plain() -> None:
        with step.autocast():
            loss = policy.plain_class.forward(policy, step.batch)[0]
        loss.mean().backward()

    def forced() -> None:
        with step.autocast():
            loss = policy.forward(step.batch)[0]
        loss.mean().backward()

    plain_s, forced_s, teacher_s = _seconds(plain), _seconds(forced), _seconds(lambda: _features(step))
    online = any(source.store is None for source in policy.feature_sources)
    found.facts["step"] = (
        f"{plain_s:.3f} s plain, {forced_s:.3f} s with forcing ({forced_s / plain_s:.2f} x), of which "
        f"{teacher_s:.3f} s {'the teacher, which a cache spares' if online else 'reading stored features'}; "
        f"forward and backward, batch {len(step.raw['action'])}"
    )
    if torch.cuda.is_available() and next(policy.parameters()).is_cuda:
        found.facts["peak memory"] = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU"
    else:
        peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        found.facts["peak memory"] = f"{peak_gib:.2f} GiB of this process, on the CPU"


def _seconds(run: Callable[[], Any], repeats: int = 2) -> float:
    """Seconds of the fastest of some runs, which other load disturbs least."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


@contextmanager
def _warnings(found: Findings) -> Iterator[None]:
    """Turns warnings of the policy into findings."""

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.odd.append(record.getMessage())

    logger, keep = logging.getLogger("lerobot_policy_spatial_forcing"), Keep(logging.WARNING)
    level, propagates = logger.level, logger.propagate
    logger.addHandler(keep)
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(keep)
        logger.setLevel(level)
        logger.propagate = propagates
