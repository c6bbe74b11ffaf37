"""Memory and hours of the recipes of LeRobot's policies, computed from their flags.

    python scripts/recipe_cost.py          # a minute and a half

Each policy is built at its own size on the meta device, by LeRobot's class from the recipe's flags, with the
recipe's adapters; what autograd keeps of a forward pass of one sample and the matrix products are counted
there (SmolVLA's on the CPU: its forward reads values). Nothing is measured. Counted are weights, gradients,
AdamW's two moments and what is kept; left out is what lives for a moment, the allocator's fragments, and
stored features. With gradient checkpointing the blocks keep what enters them, and one block is computed
again. Hours are the matrix products at 40 % of an H100's 989 T operations a second in bfloat16, 494 T in
float32 (TF32). OpenVLA's recipes have benchmarks/openvla_cost.py.
"""

import contextlib
import logging
import shlex
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
USED, RATES = 0.4, {torch.bfloat16: 989e12, torch.float32: 494e12}
STARTS = ("spatial-forcing", "torchrun")
# What the data sets of the recipes hold: cameras with height and width, numbers of state and action.
DATA = {
    "HuggingFaceVLA/libero": ({"image": (256, 256), "image2": (256, 256)}, 8, 7),
    "lerobot/robotwin_unified": (dict.fromkeys(("head", "left", "right"), (480, 640)), 14, 14),
}


def commands_of(recipe: Path, *arguments: str) -> list[list[str]]:
    """The commands of spatial-forcing that a recipe runs, word by word, as the shell expands them.

    Args:
        recipe: a shell file.
        arguments: to call it with.
    """
    said = "".join(f"{name}() {{ printf '%q ' {name} \"$@\"; echo; }}; export -f {name}; " for name in STARTS)
    call = shlex.join(["bash", str(recipe), *arguments])
    done = subprocess.run(["bash", "-c", said + call], capture_output=True, text=True, check=True, timeout=60)
    words = [shlex.split(line) for line in done.stdout.splitlines()]
    return [one[one.index("spatial-forcing") + 1 :] for one in words]


def training_flags(recipe: Path, *arguments: str) -> list[str]:
    """The flags of a recipe's `spatial-forcing train`."""
    return next(one[1:] for one in commands_of(recipe, *arguments) if one[0] == "train")


def main() -> None:
    """Prints a line for each recipe."""
    logging.getLogger().setLevel(logging.ERROR)  # LeRobot's page about FFmpeg
    for name in ("pi0_robotwin2", "pi05_libero", "smolvla_libero"):
        memory, hours, parts = cost_of(ROOT / "recipes" / f"{name}.sh")
        told = ", ".join(f"{part} {value:.1f}" for part, value in parts.items())
        print(f"{name}: {memory:.0f} GB ({told}), {hours:.1f} hours")


def cost_of(recipe: Path) -> tuple[float, float, dict[str, float]]:
    """GB, hours, and the parts of the memory of a recipe."""
    from spatial_forcing.flags import read_config
    from spatial_forcing.inspection.blank import without_weights

    with tempfile.TemporaryDirectory() as folder:
        config = read_config(
            [*training_flags(recipe), "--policy.device=cpu", *base_flags(recipe, Path(folder))]
        )
        of: Any = config.policy
        batch, steps, checkpointing = (
            config.batch_size,
            config.steps,
            getattr(of, "gradient_checkpointing", False),
        )
        device = "cpu" if of.type == "sf_smolvla" else "meta"
        with without_weights() if device == "meta" else contextlib.nullcontext():
            policy = built(of, config, device)
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    trained = sum(p.numel() * p.element_size() for p in policy.parameters() if p.requires_grad)
    kept, blocks, entering, operations = passed(policy, of.type.removeprefix("sf_"))
    if checkpointing:
        kept = entering + kept / blocks
    # A frozen layer is passed once in the backward pass, one that trains twice.
    passes = 2 + trained / weights + checkpointing
    parts = {"weights": weights, "gradients and moments": 3 * trained, "activations": batch * kept}
    dtypes = [p.dtype for p in policy.parameters() for _ in range(p.numel() // 1_000_000)]
    rate = USED * RATES[max(set(dtypes), key=dtypes.count)]
    hours = steps * batch * operations * passes / rate / 3600
    return sum(parts.values()) / 1e9, hours, {name: value / 1e9 for name, value in parts.items()}


def base_flags(recipe: Path, folder: Path) -> list[str]:
    """Flags that stand in for what a policy would fetch from the Hub to be built."""
    if "smolvla" not in recipe.name:
        return []
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from policy_step import smolvlm2_500m

    return [f"--policy.vlm_model_name={smolvlm2_500m(folder)}"]


def built(of: Any, config: Any, device: str) -> Any:
    """The policy without forcing, with the recipe's adapters."""
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import get_policy_class

    cameras, state, action = DATA[config.dataset.repo_id]
    plain = of.plain()
    plain.device = device
    plain.input_features = {
        f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *size))
        for name, size in cameras.items()
    }
    plain.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (state,))
    plain.output_features = {"action": PolicyFeature(FeatureType.ACTION, (action,))}
    plain.gradient_checkpointing = False
    with contextlib.redirect_stdout(sys.stderr):
        policy = get_policy_class(plain.type)(plain).train()
    if config.peft is None:
        return policy
    return policy.wrap_with_peft(peft_cli_overrides=asdict(config.peft)).base_model.model


def passed(policy: Any, kind: str) -> tuple[float, int, float, float]:
    """Of one sample: bytes kept, blocks, bytes that enter the blocks, and operations of a forward pass."""
    from spatial_forcing.hosts import host_of

    config = policy.config
    on = {"device": config.device}
    batch: dict[str, Any] = {
        key: torch.rand(1, *feature.shape, **on) for key, feature in config.image_features.items()
    }
    batch["observation.state"] = torch.rand(1, *config.robot_state_feature.shape, **on)
    batch["action"] = torch.rand(1, config.chunk_size, *config.action_feature.shape, **on)
    batch["action_is_pad"] = torch.zeros(1, config.chunk_size, dtype=torch.bool, **on)
    words = config.tokenizer_max_length
    batch["observation.language.tokens"] = torch.zeros(1, words, dtype=torch.long, **on)
    batch["observation.language.attention_mask"] = torch.ones(1, words, dtype=torch.bool, **on)
    own = {t.untyped_storage()._cdata for t in [*policy.parameters(), *policy.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage
        return tensor

    policy.model.sample_time = lambda size, device: torch.rand(size, **on)
    host = host_of(policy)
    with (
        torch.device(config.device),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        FlopCounterMode(display=False) as counter,
        contextlib.suppress(NotImplementedError),  # pi0 copies its loss to the CPU, after all is counted
    ):
        policy.forward(batch)
    tokens = host.layout.tokens + words
    entering = len(host.blocks) * 2 * (tokens * host.width + config.chunk_size * host.width)
    total = float(sum(storage.nbytes() for storage in kept.values()))
    return total, len(host.blocks), entering, counter.get_total_flops()


if __name__ == "__main__":
    main()
