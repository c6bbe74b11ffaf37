"""Doctor: put a host, a teacher and some pictures together once, and say what looks wrong."""

import resource
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spatial_forcing.align import SpatialForcing
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.lerobot import record_of
from spatial_forcing.tap import Host, TapError
from spatial_forcing.teachers import load_teacher


@dataclass
class Findings:
    """What the doctor saw. ``wrong`` stops training or makes it pointless; ``odd`` deserves a look."""

    facts: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)


def examine(
    *,
    dataset: Path | None,
    checkpoint: Path | None,
    teacher_name: str,
    weights: Path | None,
    depth: int | None,
    batch_size: int,
    cameras: tuple[str, ...],
    console: Any,
) -> bool:
    """Prints a health report of host + teacher + data. Returns whether training could start."""
    batch = _batch(dataset, checkpoint, batch_size, cameras)
    policy, images_BV3HW, loss_of = batch
    teacher = load_teacher(teacher_name, weights=weights)
    host = host_of(policy)
    findings = diagnose(host, teacher, images_BV3HW, loss_of, policy, depth)
    console.rule("Spatial Forcing doctor")
    console.print(host.layout.draw(), highlight=False, markup=False)
    for name, value in findings.facts.items():
        console.print(f"[bold]{name:<24}[/]{value}", highlight=False)
    for message in findings.odd:
        console.print(f"[yellow]odd:[/] {message}", highlight=False)
    for message in findings.wrong:
        console.print(f"[red]wrong:[/] {message}", highlight=False)
    if not findings.wrong and not findings.odd:
        console.print("[green]Nothing looks wrong.[/]")
    return not findings.wrong


def diagnose(
    host: Host, teacher: Any, images_BV3HW: Tensor, loss_of: Any, policy: Any, depth: int | None
) -> Findings:
    """One training step with and without forcing, and what it shows.

    Args:
        host, teacher: what to align.
        images_BV3HW: in [0, 1], views in the host's order.
        loss_of: () -> the host's action loss on the same frames; called several times.
        policy: the module whose parameters are counted.
        depth: tap depth, the host's recommendation if None.
    """
    found = Findings()
    sf = SpatialForcing(host, teacher, depth=depth)
    try:
        plain_s = _seconds(lambda: loss_of().backward())
        features = teacher(images_BV3HW)
        with sf.watch():
            action = loss_of()
        try:
            align = sf(features)
        except TapError as error:
            found.wrong.append(str(error))
            return found
        _measure(found, host, teacher, sf, policy, features, action, align)

        def forced(target: Any) -> None:
            with sf.watch():
                loss = loss_of()
            (loss + sf(target)).backward()

        stored_s, online_s = _seconds(lambda: forced(features)), _seconds(lambda: forced(images_BV3HW))
        found.facts["step"] = (
            f"{plain_s:.3f} s plain, {stored_s:.3f} s with stored features ({stored_s / plain_s:.2f} x), "
            f"{online_s:.3f} s with the teacher online ({online_s / plain_s:.2f} x); forward and backward, "
            f"batch {len(images_BV3HW)}"
        )
        found.facts["peak memory"] = f"{_peak_gib():.2f} GiB of this process, on the CPU"
    finally:
        sf.detach()
        policy.zero_grad(set_to_none=True)
    return found


def _measure(
    found: Findings,
    host: Host,
    teacher: Any,
    sf: SpatialForcing,
    policy: Any,
    features: Any,
    action: Tensor,
    align: Tensor,
) -> None:
    trains = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    total = sum(p.numel() for p in policy.parameters())
    rows, cols = features.tokens_BVHWC.shape[2:4]
    valid, cosine = sf.logs["valid_fraction"].item(), sf.logs["cosine"].item()
    ratio = sf.gradient_ratio(action, align).item()
    licence = f"{teacher.licence}, fingerprint {teacher.fingerprint}"
    found.facts |= {
        "host": f"{host.name}, {len(host.blocks)} blocks, width {host.width}",
        "tap": f"after block {sf.tap.depth} of {len(host.blocks)}",
        "teacher": f"{rows} x {cols} tokens a view, width {teacher.width}; {licence}",
        "valid tokens": f"{valid:.0%}",
        "trainable parameters": f"{trains:,} of {total:,} in the policy, "
        f"{sum(p.numel() for p in sf.parameters()):,} projector",
        "cosine at start": f"{cosine:.3f}",
        "gradient ratio at tap": f"{ratio:.3f} (alignment over action, weight {sf.weight})",
    }
    tokens = features.tokens_BVHWC.flatten(0, -2)
    common = torch.nn.functional.cosine_similarity(tokens, tokens.mean(0, keepdim=True)).mean().item()
    found.facts["teacher's common part"] = f"cosine of a token to the mean token: {common:.2f}"
    layout = sf.tap.layout
    if features.tokens_BVHWC.shape[1] < layout.views:
        found.odd.append(f"The data have {features.tokens_BVHWC.shape[1]} views, the host {layout.views}.")
    if valid == 0:
        found.wrong.append("No token is valid: the alignment loss is zero and trains nothing.")
    elif valid < 0.5:
        found.odd.append(
            f"Only {valid:.0%} of the visual tokens are valid: padding or missing views take the rest."
        )
    if common > 0.8:
        found.odd.append(
            "The teacher's tokens share a large common part, so a cosine is high without learning "
            "anything. Try standardize=True."
        )
    if ratio > 10:
        found.odd.append(
            f"The alignment pulls {ratio:.0f} times as hard as the action loss; try a smaller weight."
        )
    if rows * cols < layout.rows * layout.cols:
        found.odd.append("The teacher's grid is coarser than the host's: raise its resolution.")


def _batch(
    dataset: Path | None, checkpoint: Path | None, size: int, cameras: tuple[str, ...]
) -> tuple[Any, Tensor, Any]:
    """(policy, images_BV3HW, loss_of) from a checkpoint and a data set, or from the built-in parts."""
    if (dataset is None) != (checkpoint is None):
        raise SpatialForcingError(
            "Give both a data set and a checkpoint trained on such data, or neither to check the built-in "
            "VLA on rendered frames."
        )
    if dataset is None or checkpoint is None:
        return _built_in(size)
    from torch.utils.data import DataLoader, Subset

    from spatial_forcing.evaluate import LoadedPolicy

    loaded = LoadedPolicy(checkpoint)
    data = loaded.dataset(dataset)
    frames = torch.linspace(0, len(data) - 1, min(size, len(data))).long().tolist()
    batch = loaded.preprocess(next(iter(DataLoader(Subset(data, frames), batch_size=len(frames)))))
    keys = list(cameras or loaded.config.image_features)
    record = record_of(loaded.policy)
    if record is not None and record.pictures is not None:
        images = record.pictures(loaded.policy, batch)  # the batch has none
    else:
        for key in keys:
            if key not in batch:
                raise UnknownNameError("camera", key, data.meta.camera_keys)
        # Of a history of observations the last counts.
        images = [batch[key][:, -1] if batch[key].ndim == 5 else batch[key] for key in keys]
    return loaded.policy, torch.stack(images, 1), lambda: loaded.policy.forward(batch)[0]


def _built_in(size: int) -> tuple[Any, Tensor, Any]:
    """A fresh TinyVLA on frames of reach-v3."""
    from spatial_forcing.hosts.tiny import TinyVLA, hash_words
    from spatial_forcing.sim.collect import render_frames

    images_BV3HW, state_BS, action_BA = render_frames("reach-v3", size)
    vla = TinyVLA(views=images_BV3HW.shape[1], image_size=images_BV3HW.shape[-1], state_dim=state_BS.shape[1])
    words = hash_words(["move the hand to the ball"] * size, vla.vocabulary, vla.max_words)
    return vla, images_BV3HW, lambda: (vla(images_BV3HW, words, state_BS) - action_BA[:, None]).abs().mean()


def _seconds(step: Any, repeats: int = 3) -> float:
    """The fastest of a few runs: what the step costs when nothing else disturbs it."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
    return min(times)


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
