"""What a training step of OpenVLA-7B with LoRA costs: plain, with stored features, with VGGT-1B online.

    python benchmarks/openvla_cost.py                                   # computed alone, anywhere, seconds
    python benchmarks/openvla_cost.py --device cuda --batch 8           # measured as well, beside it
    python benchmarks/openvla_cost.py --device cpu --size small         # does the measuring work: a minute

The arithmetic is `spatial_forcing.openvla.cost` and `operations`; its numbers are marked "computed". Measured
are the library's OpenVLA with OFT's heads at its own size with random weights, adapters of PEFT on all linear
layers, and VGGT-1B's architecture with random weights; speed does not depend on the values. The kinds of
step take turns in one process, and ratios are to the plain step of the same round. Writes
benchmarks/openvla_cost.json, or openvla_cost_<device>_<size>.json with what was measured.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from record import made_with

from spatial_forcing import SpatialForcing
from spatial_forcing.grid import Layout
from spatial_forcing.openvla.config import SMALL, OpenVLAConfig
from spatial_forcing.openvla.cost import PROMPT, Setting, bytes_of, parameters_of
from spatial_forcing.openvla.model import EMPTY, OpenVLA
from spatial_forcing.openvla.operations import operations_of
from spatial_forcing.site import Host

KINDS = ("plain", "stored features", "teacher online")
BATCHES = (1, 8)
RANK = 32
# Of the published recipe; and 40 % of an H100's operations a second in bfloat16, for hours.
STEPS, RATE = 150_000, 0.4 * 989e12


@dataclass
class Args:
    """Options of the benchmark."""

    device: Literal["none", "cpu", "cuda"] = "none"
    """Where to measure; none computes alone."""
    size: Literal["7b", "small"] = "7b"
    """OpenVLA-7B in bfloat16, or a small model in float32 with a small teacher, to try this script."""
    batch: int = 8
    """Samples a step."""
    rounds: int = 6
    """How often each kind of step is timed, after one round that is not."""
    resolution: int = 518
    """Of the teacher, pixels."""
    checkpointing: bool = False
    """Keep the inputs of the language model's blocks alone."""
    coefficients: bool = False
    """Here for the functions shared with policy_step.py."""
    out: Path | None = None
    """Where the numbers go."""


def main(args: Args) -> None:
    """Computes, measures where there is a device for it, and writes the numbers."""
    made = made_with(args)
    result = made | {"computed": computed(args), "measured": None}
    if args.device != "none":
        result["measured"] = measured(args)
    name = "openvla_cost" if args.device == "none" else f"openvla_cost_{args.device}_{args.size}"
    out = args.out or Path(__file__).parent / f"{name}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for batch, kinds in result["computed"]["batches"].items():
        for kind, one in kinds.items():
            cost = f"{one['gb']:.1f} GB, {one['tera_operations']:.1f} T operations, {one['hours']:.1f} h"
            print(f"computed, batch {batch}: {kind:<32}{cost}")
    for kind, one in (result["measured"] or {}).items():
        print(f"measured: {kind:<18}{one['seconds']['median']:.3f} s, {one['memory_gib']:.2f} GiB")
    print(out)


# ---- computed


def settings(args: Args, batch: int) -> dict[str, Setting]:
    """The kinds of step, with and without checkpointing."""
    config = OpenVLAConfig() if args.size == "7b" else SMALL
    plain = Setting(config, batch=batch)
    kinds = {
        KINDS[0]: plain,
        KINDS[1]: replace(plain, forcing=True),
        KINDS[2]: replace(plain, forcing=True, teacher=args.resolution),
    }
    ends = {kind: replace(setting, checkpointing=True) for kind, setting in kinds.items()}
    return kinds | {f"{kind}, checkpointing": setting for kind, setting in ends.items()}


def computed(args: Args) -> dict[str, Any]:
    """Parameters, and by batch and kind of step the memory and operations."""
    batches = sorted({*BATCHES, args.batch})
    found = {
        str(batch): {kind: computed_step(setting) for kind, setting in settings(args, batch).items()}
        for batch in batches
    }
    return {"parameters": parameters_of(settings(args, 1)[KINDS[1]])._asdict(), "batches": found}


def computed_step(setting: Setting) -> dict[str, Any]:
    memory, operations = bytes_of(setting), operations_of(setting)
    return {
        "gb": round(memory.total / 1e9, 2),
        "parts_gb": {name: round(value / 1e9, 2) for name, value in memory._asdict().items()},
        "tera_operations": round(operations.total / 1e12, 1),
        "parts_tera_operations": {n: round(v / 1e12, 1) for n, v in operations._asdict().items()},
        "hours": round(STEPS * operations.total / RATE / 3600, 1),
        "tokens": setting.tokens,
    }


# ---- measured


def measured(args: Args) -> dict[str, Any]:
    """Seconds and peak memory by kind of step."""
    from policy_step import measure, random_cache, vggt_1b

    from spatial_forcing.cache.store import FeatureStore
    from spatial_forcing.teachers import load_teacher

    torch.manual_seed(0)
    whole = args.size == "7b"
    with tempfile.TemporaryDirectory() as folder:
        side, width = (args.resolution // 14, 2048) if whole else (8, 224)
        store = FeatureStore(random_cache(Path(folder) / "features", side, width))
        model, forward = build(args)
        sf = SpatialForcing(host_of_openvla(model), store).to(args.device)
        step = stepper(args, model, sf, forward)
        plain, stored = lambda: step(None), lambda: step(store)
        found = measure({"plain": plain, KINDS[1]: stored}, args)  # type: ignore[arg-type]
        # Only now: while the others were measured, no teacher was in memory.
        teacher = vggt_1b(args) if whole else load_teacher("untrained-tiny", device=args.device)  # type: ignore[arg-type]
        online = measure({"plain": plain, KINDS[2]: lambda: step(teacher)}, args)  # type: ignore[arg-type]
        return found | {KINDS[2]: online[KINDS[2]]}


def build(args: Args) -> tuple[OpenVLA, Callable[[], torch.Tensor]]:
    """The model with adapters, and a forward pass of it to its loss on a random batch."""
    from peft import LoraConfig, get_peft_model

    config = OpenVLAConfig() if args.size == "7b" else SMALL
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if args.size == "7b" else torch.float32)
    try:
        with torch.device(args.device):
            model: Any = OpenVLA(config).train()
    finally:
        torch.set_default_dtype(before)
    but = r"(action_head|proprio_projector|.*lm_head).*"
    get_peft_model(model, LoraConfig(r=RANK, lora_alpha=16, target_modules="all-linear", exclude_modules=but))
    for head in (model.action_head, model.proprio_projector):
        head.float().requires_grad_(True)
    if args.checkpointing:
        model.language_model.gradient_checkpointing_enable({"use_reentrant": False})
        model.language_model.enable_input_require_grads()
    on = {"device": args.device}
    text = model.text([torch.tensor([1, *range(3, 1 + PROMPT), EMPTY], **on)] * args.batch)
    side = config.towers[0].image_size
    pixels = torch.rand(args.batch, 6 * config.views, side, side, **on)
    state = torch.rand(args.batch, config.proprio_width, **on)
    actions = torch.rand(args.batch, config.chunk, config.action_width, **on)

    def forward() -> torch.Tensor:
        encoded = model(pixels, text.ids_BT, text.valid_BT, slots_BT=text.slots_BT, proprio_BP=state)
        return model.regression_loss(encoded, text.slots_BT, actions)

    return model, forward


def host_of_openvla(model: OpenVLA) -> Host:
    """The host record of the library's OpenVLA, read after three quarters of its blocks, as published."""
    llama, vision = model.language_model.model, model.vision_backbone
    layout = Layout(model.config.views, vision.rows, vision.cols)
    return Host("OpenVLA", llama.layers, llama.norm, llama.config.hidden_size, layout, model.visual)


def stepper(args: Args, model: OpenVLA, sf: SpatialForcing, forward: Callable[[], torch.Tensor]) -> Any:
    """A training step: plain with None, else toward a store's features or a teacher's."""
    from policy_step import FRAMES

    from spatial_forcing.target import target_of

    trained = [p for p in [*model.parameters(), *sf.parameters()] if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    images = torch.rand(args.batch, 2, 3, 224, 224, device=args.device)
    index = torch.randint(0, FRAMES, (args.batch,))

    def step(target: Any) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.size == "7b"), sf.watch():
            loss = forward()
            if target is not None:
                sf.parts[0].target = target_of(target)
                loss = loss + sf(index if hasattr(target, "codec") else images)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


if __name__ == "__main__":
    main(tyro.cli(Args))
