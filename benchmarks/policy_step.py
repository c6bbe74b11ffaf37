"""What forcing costs a step of a real policy: plain, with stored features, with the teacher online.

    python benchmarks/policy_step.py --host smolvla --batch 2 --rounds 4            # CPU, full size, minutes
    python benchmarks/policy_step.py --host pi05 --device cuda --batch 8 --dtype bfloat16

LeRobot's classes at their published sizes with random weights, and VGGT-1B's architecture with random
weights as teacher; speed does not depend on the values. The kinds of step take turns in one process, so that
whatever else the machine does hits all alike; ratios are to the plain step of the same round. Stored
features are read from a feature cache on disk, frame by frame, as in training. Peak memory is that of
tensors. Writes benchmarks/policy_step_<host>_<device>.json.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from lerobot.configs import FeatureType, PolicyFeature
from record import made_with, quartiles
from torch.profiler import ProfilerActivity, profile

from lerobot_policy_spatial_forcing.configuration_sf import CLASSES
from lerobot_policy_spatial_forcing.forcing import ForcingConfig
from lerobot_policy_spatial_forcing.modeling_sf import forced_policy_class
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.store import Source
from spatial_forcing.cache.write import write_features
from spatial_forcing.features import Features
from spatial_forcing.target import target_of
from spatial_forcing.teachers.vggt import VGGT, VGGTConfig
from spatial_forcing.teachers.vggt_teacher import VGGTTeacher

CAMERAS = ("observation.images.front", "observation.images.wrist")
# Of the feature cache: frames, and numbers per token.
FRAMES, COMPONENTS = 64, 128


@dataclass
class Args:
    """Options of the benchmark."""

    host: Literal["smolvla", "pi0", "pi05", "act"] = "smolvla"
    """Policy."""
    device: str = "cpu"
    """cpu or cuda."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the training step (autocast); bfloat16 for GPUs only."""
    batch: int = 2
    """Frames a step."""
    rounds: int = 4
    """How often each kind of step is timed, after one round that is not."""
    resolution: int = 224
    """Of the teacher, pixels; 518 as published."""
    coefficients: bool = False
    """Align to the 128 stored coefficients of a token instead of the 2048 channels they stand for."""
    online: bool = True
    """Time the teacher online too (not with --coefficients: a teacher has none)."""
    threads: int = 2
    """CPU threads."""
    out: Path | None = None
    """Where the numbers go."""


def main(args: Args) -> None:
    """Times the kinds of step in turns and writes the numbers."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    made = made_with(args)
    with tempfile.TemporaryDirectory() as folder:
        policy = build_policy(args, Path(folder))
        plain, stored, online = kinds_of_step(args, policy)
        found = [measure({"plain": plain, "stored features": stored}, args)]
        if args.online and not args.coefficients:
            # Only now: while stored features were measured, no teacher was in memory.
            teacher = vggt_1b(args)
            found.append(measure({"plain": plain, "teacher online": lambda: online(teacher)}, args))
    # Only the first plain step had no teacher in memory.
    alone = found[0]["plain"]["memory_gib"]
    for one in found[-1].values():
        one["memory_ratio"] = round(one["memory_gib"] / alone, 4)
    result = made | {
        "parameters": sizes_of(policy) | ({"teacher": parameters(teacher)} if len(found) > 1 else {}),
        "kinds": {kind: numbers for part in reversed(found) for kind, numbers in part.items()},
    }
    name = f"{args.host}_coefficients" if args.coefficients else args.host
    out = args.out or Path(__file__).parent / f"policy_step_{name}_{args.device}.json"
    out.write_text(json.dumps(result, indent=1) + "\n")
    for name, one in result["kinds"].items():
        seconds, ratio = one["seconds"], one["ratio_to_plain"]
        print(
            f"{name:<16}{seconds['median']:.3f} s a step   {ratio['median']:.3f} x plain"
            f"   (quartiles {ratio['low']:.3f} to {ratio['high']:.3f})"
            f"   memory {one['memory_ratio']:.3f} x ({one['memory_gib']:.2f} GiB)"
        )
    print(out)


def measure(steps: dict[str, Callable[[], None]], args: Args) -> dict[str, dict[str, Any]]:
    """Seconds a step, their ratio to the plain step of the same round, and peak memory, by kind."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for round_ in range(args.rounds + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if args.device == "cuda":
                torch.cuda.synchronize()
            if round_:
                times[name].append(time.perf_counter() - start)
    memory = {name: peak_memory(step, args.device) for name, step in steps.items()}
    return {
        name: {
            "seconds": quartiles(values),
            "ratio_to_plain": quartiles([a / b for a, b in zip(values, times["plain"], strict=True)]),
            "memory_ratio": round(memory[name] / memory["plain"], 4),
            "memory_gib": round(memory[name] / 2**30, 3),
        }
        for name, values in times.items()
    }


def peak_memory(step: Callable[[], None], device: str) -> int:
    """Bytes of tensors at the worst moment of a step, those that are there all the time included."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step()
        return torch.cuda.max_memory_allocated()
    # torch keeps no peak on a CPU, but tells a profiler of every allocation.
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak + lasting_bytes()


def lasting_bytes() -> int:
    """Bytes of all tensors that are alive: weights, optimizer state, the batch."""
    storages = {}
    for thing in gc.get_objects():
        # Not isinstance, which wakes up lazy objects.
        if issubclass(type(thing), torch.Tensor) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def build_policy(args: Args, folder: Path) -> Any:
    """The policy at its published size, with a feature cache of VGGT-1B's shape."""
    cache = random_cache(folder / "features", args.resolution // 14, 2 * VGGTConfig().embed_dim)
    config = CLASSES[args.host](
        **options(args.host, folder),
        device=args.device,
        forcing=ForcingConfig(cache=str(cache), pca_targets=args.coefficients, diagnostics_every=0),
    )
    config.input_features = {key: PolicyFeature(FeatureType.VISUAL, (3, 480, 640)) for key in CAMERAS}
    config.input_features["observation.state"] = PolicyFeature(FeatureType.STATE, (8,))
    config.output_features = {"action": PolicyFeature(FeatureType.ACTION, (7,))}
    return forced_policy_class(args.host)(config).to(args.device).train()  # type: ignore[attr-defined]


def kinds_of_step(
    args: Args, policy: Any
) -> tuple[Callable[[], None], Callable[[], None], Callable[[VGGTTeacher], None]]:
    """Plain, with stored features, with a teacher online: on one policy and one batch."""
    plain_class = type(policy).__mro__[2]
    optimizer = torch.optim.AdamW([p for p in policy.parameters() if p.requires_grad], lr=1e-5)
    batch = random_batch(args, policy.config)
    source, stored = policy.feature_source, policy.feature_source.store

    def step(forward: Callable[[], torch.Tensor]) -> None:
        with torch.autocast(args.device, torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def forced(store: Any, teacher: Any) -> torch.Tensor:
        source.store = store
        source.teacher = teacher
        policy.forcing.parts[0].target = target_of(teacher)
        return policy.forward(dict(batch))[0]

    return (
        lambda: step(lambda: plain_class.forward(policy, dict(batch))[0]),
        lambda: step(lambda: forced(stored, stored)),
        lambda teacher: step(lambda: forced(None, teacher)),
    )


def sizes_of(policy: Any) -> dict[str, int]:
    host = [p for n, p in policy.named_parameters() if not n.startswith("forcing.")]
    return {
        "policy": sum(p.numel() for p in host),
        "policy, training": sum(p.numel() for p in host if p.requires_grad),
        "projector": parameters(policy.forcing),
    }


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def vggt_1b(args: Args) -> VGGTTeacher:
    """VGGT-1B's aggregator with random weights; in bfloat16 on a GPU."""
    with torch.device(args.device):
        model = VGGT(VGGTConfig(), ("aggregator",))
    dtype = torch.bfloat16 if args.device == "cuda" else torch.float32
    name, licence = "vggt-1b, random weights", "Apache-2.0"
    return VGGTTeacher(model, name=name, licence=licence, resolution=args.resolution, dtype=dtype)


def random_cache(root: Path, side: int, width: int) -> Path:
    """A feature cache of random numbers in the shape of the teacher's."""
    source = Source(
        teacher="random", teacher_fingerprint="0" * 16, teacher_licence="none", dataset="0" * 16,
        frames=FRAMES, cameras=CAMERAS,
    )  # fmt: skip

    def features(images_BV3HW: torch.Tensor) -> Features:
        tokens = torch.randn(len(images_BV3HW), len(CAMERAS), side, side, width)
        return Features(tokens, torch.ones(tokens.shape[:4], dtype=torch.bool))

    def images(indices: list[int]) -> torch.Tensor:
        return torch.zeros(len(indices), len(CAMERAS), 3, 8, 8)

    codec = CodecOptions("pca-int8", components=COMPONENTS)
    return write_features(root, source, images, features, options=codec, batch_size=8)


def random_batch(args: Args, config: Any) -> dict[str, Any]:
    """A preprocessed batch."""
    on = {"device": args.device}
    batch: dict[str, Any] = {key: torch.rand(args.batch, 3, 480, 640, **on) for key in CAMERAS}
    batch["observation.state"] = torch.randn(args.batch, 8, **on)
    batch["action"] = torch.randn(args.batch, config.chunk_size, 7, **on)
    batch["action_is_pad"] = torch.zeros(args.batch, config.chunk_size, dtype=torch.bool, **on)
    batch["observation.language.tokens"] = torch.randint(0, 64, (args.batch, 48), **on)
    batch["observation.language.attention_mask"] = torch.ones(args.batch, 48, dtype=torch.bool, **on)
    batch["index"] = torch.randint(0, FRAMES, (args.batch,), **on)
    return batch


def options(host: str, folder: Path) -> dict[str, Any]:
    """What it takes to build a policy at its published size without downloading anything."""
    if host == "smolvla":
        # As people fine-tune it for forcing: the language model trains, the vision encoder does not.
        return {"vlm_model_name": str(smolvlm2_500m(folder / "vlm")), "train_expert_only": False}
    if host == "act":
        return {"pretrained_backbone_weights": None, "normalization_mapping": {}}
    return {}


def smolvlm2_500m(folder: Path) -> Path:
    """Configuration of SmolVLM2-500M, with a small tokenizer."""
    from transformers import SmolVLMConfig, SmolVLMImageProcessor, SmolVLMProcessor, SmolVLMVideoProcessor

    from spatial_forcing.hosts.small import small_tokenizer

    vision = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12}
    vision |= {"num_attention_heads": 12, "image_size": 512, "patch_size": 16}
    text = {"model_type": "llama", "hidden_size": 960, "intermediate_size": 2560, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 15, "num_key_value_heads": 5, "head_dim": 64, "vocab_size": 49280}
    config = SmolVLMConfig(scale_factor=4, vision_config=vision, text_config=text | {"pad_token_id": 2})
    config.save_pretrained(folder)
    parts = SmolVLMImageProcessor(), small_tokenizer(), SmolVLMVideoProcessor()
    SmolVLMProcessor(*parts).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main(tyro.cli(Args))
