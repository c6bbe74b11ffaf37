"""Trains `vggt-tiny-sim`, the small teacher in this package: a VGGT on simulated scenes, from scratch.

    python -m spatial_forcing.sim.scenes --out outputs/scenes --scenes 32000
    python recipes/vggt_tiny_sim.py --scenes outputs/scenes --out outputs/teacher
    python recipes/vggt_tiny_sim.py --scenes outputs/scenes --out outputs/teacher-2d --objective masked
    python recipes/vggt_tiny_sim.py --scenes outputs/scenes --out outputs/teacher-robot --frame robot \
        --name vggt-tiny-sim-robot

A step of the first takes about 0.35 s of one CPU core, of the second 0.2 s; the scenes 9 minutes of two.
Start a stopped run again with the same command: it goes on where it was. A finished run leaves
`<name>.safetensors` (float16), `<name>.md` and `<name>.json`; `--evaluate FILE` computes its numbers again.

Measured with these defaults: `vggt-tiny-sim` depth AbsRel 0.123 and delta1 0.862 on held-out scenes of seen
tasks, 0.141 and 0.834 on unseen tasks; `vggt-tiny-sim-robot` 0.110, 0.886, 0.125 and 0.857. (1400 steps of 16
of 8000 scenes, the first weights, had 0.222, 0.673, 0.241 and 0.651.)

Supervision as in VGGT (arXiv 2503.11651, section 3.4): depth, point maps and cameras, with learned
confidences. Lengths are in metres and never rescaled. `--objective masked` trains the 2D control on the same
images instead: the same aggregator, each view on its own, fills in masked patches (arXiv 2111.06377).
"""

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import tyro
from safetensors.torch import save_file
from torch import nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import write_atomically
from spatial_forcing.teachers import load_teacher
from spatial_forcing.teachers.checkpoint import Checkpoint
from spatial_forcing.teachers.described import METADATA_KEY
from spatial_forcing.teachers.objectives import GeometryVGGT, Loss, MaskedVGGT
from spatial_forcing.teachers.scene_batches import Batch, Frame, Scenes, jitter, make_batch, read_scenes
from spatial_forcing.teachers.vggt_teacher import TINY

VALIDATION = ("seen-val", "unseen-val")
LICENCE = "Apache-2.0"
SAVE_EVERY = 60.0  # seconds between checkpoints
CURVE = 14  # evaluations on the way
EVERY = 4  # of the held-out scenes, one in so many is evaluated on the way
Model = GeometryVGGT | MaskedVGGT


@dataclass(frozen=True)
class Args:
    """Train a small VGGT teacher, or its 2D control.

    Attributes:
        scenes: folder written by `python -m spatial_forcing.sim.scenes`.
        out: folder for the checkpoint and the results.
        name: file name of the results; follows from the objective by default.
        objective: geometry (the teacher), or masked (its 2D control).
        frame: of point maps and poses: that of the first view's camera, as VGGT, or the robot's base.
        loss: with learned confidences as VGGT, or plain.
        steps: of the optimiser.
        batch: scenes a step.
        lr: peak learning rate; linear warm-up, then cosine to zero.
        weight_decay: of matrices, not of biases, norms and gains.
        warmup: steps to the peak learning rate.
        single_view: fraction of steps that see one view of each scene only (geometry).
        mask: fraction of patches hidden (masked).
        seed: of weights, data order and augmentation.
        threads: CPU threads.
        evaluate: compute the numbers of this file and stop.
    """

    scenes: Path
    out: Path = Path("outputs/teacher")
    name: str | None = None
    objective: Literal["geometry", "masked"] = "geometry"
    frame: Frame = "first-camera"
    loss: Loss = "confidence"
    steps: int = 14_000
    batch: int = 8
    lr: float = 2e-3
    weight_decay: float = 0.05
    warmup: int = 300
    single_view: float = 0.2
    mask: float = 0.6
    seed: int = 0
    threads: int = 2
    evaluate: Path | None = None

    @property
    def file(self) -> str:
        return self.name or ("vggt-tiny-sim" if self.objective == "geometry" else "vggt-tiny-sim-2d")

    @property
    def run(self) -> dict[str, str]:
        """What must not change when a run is continued."""
        free = {"scenes", "out", "name", "threads", "evaluate"}
        return {f.name: str(getattr(self, f.name)) for f in fields(self) if f.name not in free}


def build(args: Args) -> Model:
    torch.manual_seed(args.seed)
    return GeometryVGGT(TINY) if args.objective == "geometry" else MaskedVGGT(TINY)


def training_batch(scenes: Scenes, args: Args, step: int) -> Batch:
    """The batch of a step: a function of the seed and the step alone, so that resuming changes nothing."""
    count = len(scenes.task_N)
    epoch, at = divmod(step * args.batch, count)
    order = np.concatenate([np.random.default_rng([args.seed, epoch + i]).permutation(count) for i in (0, 1)])
    index_B = torch.from_numpy(order[at : at + args.batch])
    rng = generator(args, step)
    views_BV = torch.rand(len(index_B), scenes.rgb_NVHW3.shape[1], generator=rng).argsort(dim=1)
    if args.objective == "geometry" and torch.rand((), generator=rng) < args.single_view:
        views_BV = views_BV[:, :1]
    batch = make_batch(scenes, index_B, args.frame, views_BV)
    return batch._replace(images_BV3HW=jitter(batch.images_BV3HW, rng))


def generator(args: Args, step: int) -> torch.Generator:
    return torch.Generator().manual_seed((args.seed << 32) + step)


def losses(model: Model, batch: Batch, args: Args, step: int) -> dict[str, torch.Tensor]:
    if isinstance(model, GeometryVGGT):
        return model.losses(batch, args.loss)
    return model.losses(batch, args.mask, generator(args, args.steps + step))


Curve = dict[int, dict[str, float]]  # held-out numbers on the way, by step


def train(args: Args, model: Model) -> Curve:
    """Trains to the last step, from the checkpoint in `args.out` if there is one."""
    scenes = read_scenes(args.scenes, "train", TINY.img_size)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": matrices, "weight_decay": args.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95))
    first, curve = resume(args, model, optimizer)
    size = sum(p.numel() for p in model.parameters())
    print(f"{args.file}: {size:,} parameters, {len(scenes.task_N)} scenes, {args.steps - first} steps to go")
    log, saved = Log(args.steps, first), time.monotonic()
    for step in range(first, args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.lr * rate(step, args)
        parts = losses(model, training_batch(scenes, args, step), args, step)
        optimizer.zero_grad()
        torch.stack(list(parts.values())).sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        log(step + 1, {key: value.item() for key, value in parts.items()})
        if (step + 1) % max(1, args.steps // CURVE) == 0:
            curve[step + 1] = evaluate(model, args, EVERY)["seen-val"]
            print(f"held out at step {step + 1}: {curve[step + 1]}", flush=True)
        if time.monotonic() - saved > SAVE_EVERY or step + 1 == args.steps:
            save_checkpoint(args, model, optimizer, step + 1, curve)
            saved = time.monotonic()
    return curve


def rate(step: int, args: Args) -> float:
    """Learning rate over its peak."""
    return min((step + 1) / args.warmup, 1.0) * 0.5 * (1 + float(np.cos(np.pi * step / args.steps)))


class Log:
    """Prints mean losses, speed and time left every fifteen seconds."""

    def __init__(self, steps: int, first: int):
        self.steps, self.at, self.since = steps, first, time.monotonic()
        self.sums: dict[str, float] = {}

    def __call__(self, done: int, parts: dict[str, float]) -> None:
        for key, value in parts.items():
            self.sums[key] = self.sums.get(key, 0.0) + value
        seconds, count = time.monotonic() - self.since, done - self.at
        if seconds < 15 and done < self.steps:
            return
        means = "  ".join(f"{key} {value / count:.4f}" for key, value in self.sums.items())
        left = (self.steps - done) * seconds / count / 60
        print(
            f"step {done}/{self.steps}  {means}  {seconds / count:.2f} s/step  {left:.1f} min left",
            flush=True,
        )
        self.at, self.since, self.sums = done, time.monotonic(), {}


def save_checkpoint(
    args: Args, model: Model, optimizer: torch.optim.Optimizer, step: int, curve: Curve
) -> None:
    state = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "curve": curve,
        "run": args.run,
    }
    write_atomically(args.out / "checkpoint.pt", lambda temporary: torch.save(state, temporary))


def resume(args: Args, model: Model, optimizer: torch.optim.Optimizer) -> tuple[int, Curve]:
    """Loads the checkpoint of this very run, if there is one; returns the steps done and the curve so far."""
    path = args.out / "checkpoint.pt"
    args.out.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        return 0, {}
    state = torch.load(path, weights_only=True)
    was = state["run"]
    differ = [
        f"{key} (was {was.get(key)}, now {value})" for key, value in args.run.items() if was.get(key) != value
    ]
    if differ:
        raise SpatialForcingError(
            f"{path} is of another run: {'; '.join(differ)}. Give another --out, or remove the checkpoint."
        )
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    print(f"going on from step {state['step']} ({path})")
    return state["step"], state["curve"]


@torch.no_grad()
def evaluate(model: Model, args: Args, every: int = 1) -> dict[str, dict[str, float]]:
    """Held-out numbers by split, over whole scenes and for each task, views in their own order.

    With `every`, one scene in so many is evaluated.
    """
    tasks = json.loads((args.scenes / "scenes.json").read_text())["tasks"]
    results: dict[str, dict[str, float]] = {}
    for split in VALIDATION:
        scenes = read_scenes(args.scenes, split, TINY.img_size)
        rows: list[dict[str, float]] = []
        for index_B in torch.arange(0, len(scenes.task_N), every).split(1):
            batch = make_batch(scenes, index_B, args.frame)
            found = (
                model.numbers(batch)
                if isinstance(model, GeometryVGGT)
                else {"masked_mse": model.losses(batch, args.mask, generator(args, int(index_B)))["pixels"]}
            )
            rows.append({key: value.item() for key, value in found.items()})
        task_of = [tasks[i] for i in scenes.task_N[::every].tolist()]
        results[split] = {"scenes": len(rows), **mean(rows)}
        for task in sorted(set(task_of)):
            results[f"{split}/{task}"] = mean(
                [row for row, t in zip(rows, task_of, strict=True) if t == task]
            )
    return results


def mean(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in rows[0]}


def save_results(args: Args, model: Model, curve: Curve, seconds: float) -> None:
    """Rounds the weights to float16, evaluates them so, and writes weights, numbers and card."""
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    note = f"{args.objective} objective" + (f", frame {args.frame}" if args.objective == "geometry" else "")
    said = {
        "config": asdict(TINY),
        "licence": LICENCE,
        "multi_view": args.objective == "geometry",
        "note": f"Small VGGT trained on simulated Meta-World scenes; {note}.",
    }
    weights = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    about = {METADATA_KEY: json.dumps(said), "format": "pt"}
    write_atomically(
        args.out / f"{args.file}.safetensors", lambda temporary: save_file(weights, temporary, about)
    )
    report = {
        "name": args.file,
        "command": command(),
        "commit": commit(),
        "fingerprint": load_teacher(args.out / f"{args.file}.safetensors").fingerprint,
        "parameters": {"all": count(model), "aggregator": count(model.aggregator)},
        "training": args.run,
        "scenes": json.loads((args.scenes / "scenes.json").read_text())["spec"],
        "results": evaluate(model, args),
        "curve": {"scenes": f"one in {EVERY} of seen-val", **curve},
        "minutes_last_process": round(seconds / 60, 1),
        "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), {args.threads} threads",
        "versions": {
            name: version(name) for name in ("torch", "numpy", "safetensors", "mujoco", "metaworld")
        },
    }
    (args.out / f"{args.file}.json").write_text(json.dumps(report, indent=1) + "\n")
    (args.out / f"{args.file}.md").write_text(card(args, report, said["note"]))
    print(card(args, report, said["note"]))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def command() -> str:
    """How this process was started, without the folders of the machine it ran on."""
    given = (Path(word).name if Path(word).is_absolute() else word for word in sys.argv[1:])
    return " ".join(["python", f"recipes/{Path(sys.argv[0]).name}", *given])


def commit() -> str | None:
    """The commit of the working tree, None outside one."""
    here = Path(__file__).parent
    found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=here)
    return found.stdout.strip() or None


def card(args: Args, report: dict, note: str) -> str:
    """The model card, Markdown."""
    results = report["results"]
    keys = [key for key in results["seen-val"] if key != "scenes"]
    rows = [[name, *(f"{row[key]:.4g}" for key in keys)] for name, row in results.items()]
    lines = [["held out", *keys], ["---"] * (len(keys) + 1), *rows]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    meaning = (
        "`abs_rel` and `delta1`: depth, no scale or shift fitted. `point_error_m`: mean error of the point "
        f"map. `camera_error_*`: pose. Point maps and poses are in the {args.frame} frame; metres, degrees."
        if args.objective == "geometry"
        else f"`masked_mse`: squared error of the pixels of hidden patches ({args.mask:.0%} of all), each "
        "patch normalised to mean 0 and standard deviation 1, so that 1 is the error of an empty guess. "
        "Each view is seen on its own; no depth, no pose and no second view entered the training."
    )
    sizes = report["parameters"]
    return f"""# {args.file}

{note}

- Licence: {LICENCE}.
- Model: VGGT architecture, {sizes["all"] / 1e6:.2f} M parameters; the aggregator (the features) has
  {sizes["aggregator"] / 1e6:.2f} M. {TINY.img_size} px squares, patches of {TINY.patch} px, float16.
- Fingerprint at the default layer and resolution: `{report["fingerprint"]}`.
- Data: {report["scenes"]["train"]} random scenes of two views rendered by `spatial_forcing.sim.scenes`
  (seed {report["scenes"]["seed"]}). "Seen" are further scenes of the same tasks, "unseen" are of tasks
  that no teacher is trained on.
- Training: {args.steps} steps of {args.batch} scenes, seed {args.seed}; {report["hardware"]};
  {report["minutes_last_process"]} minutes.

```
{report["command"]}
```

{table}

{meaning}
"""


def main(args: Args) -> None:
    torch.set_num_threads(args.threads)
    model = build(args).to(memory_format=torch.channels_last)
    if args.evaluate is not None:
        weights = Checkpoint(args.evaluate)
        model.load_state_dict({key: value.float() for key, value in weights.read(weights.shapes).items()})
        print(json.dumps(evaluate(model, args), indent=1))
        return
    start = time.monotonic()
    curve = train(args, model)
    save_results(args, model, curve, time.monotonic() - start)


if __name__ == "__main__":
    try:
        main(tyro.cli(Args))
    except SpatialForcingError as error:
        sys.exit(f"error: {error}")
