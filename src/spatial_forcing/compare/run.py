"""One run of a comparison: training and the evaluation of its checkpoints.

    run.json           the specification
    start.json         checksums of what it began with
    train/             LeRobot's run: checkpoints, metrics.jsonl
    eval/000500.json   Evaluation of the checkpoint at step 500
    cost.json          peak memory, seconds of training
    log.txt            what was printed

    python -m spatial_forcing.compare.run <folder>

Finished evaluations are not made again and an interrupted training continues from its last checkpoint.
Several processes (``accelerate launch``) train together; the first of them evaluates.
"""

import os
import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spatial_forcing.compare.flags import CompareError, side_by_side
from spatial_forcing.files import read_json, write_json

SPEC = "run.json"
COST = "cost.json"
# Seconds between two lines of an evaluation.
EVERY = 30.0


@dataclass(frozen=True)
class RunSpec:
    """Specification of a run, saved in ``run.json``.

    Attributes:
        flags: of ``spatial-forcing train``.
        steps: whose checkpoints are evaluated.
        heldout: episodes of the held-out error; without any it is not measured.
        heldout_frames, episodes, eval_seed, videos: see ``plan.Measures``.
        siblings: names of the runs that must begin with the same weights and batches.
        started_elsewhere: and of those with the same batches, but weights of another checkpoint.
        trained: folder of a finished training run whose checkpoints are evaluated; None to train one.
    """

    flags: tuple[str, ...]
    steps: tuple[int, ...]
    heldout: tuple[int, ...]
    heldout_frames: int
    episodes: int
    eval_seed: int
    videos: int
    siblings: tuple[str, ...]
    trained: str | None = None
    started_elsewhere: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / SPEC, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> "RunSpec":
        saved = read_json(folder / SPEC, "Start the comparison again; it writes this file.", CompareError)
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
        return cls(**given)


def evaluation_path(folder: Path, step: int) -> Path:
    return folder / "eval" / f"{step:06d}.json"


def is_complete(folder: Path, steps: tuple[int, ...] | list[int]) -> bool:
    """Whether every checkpoint of a run has been evaluated."""
    return all(evaluation_path(folder, step).is_file() for step in steps)


def run(folder: Path) -> None:
    """Executes a run: trains and evaluates; finished work is not repeated.

    Raises:
        SpatialForcingError: the run cannot be made, with the reason.
    """
    from spatial_forcing.flags import read_config
    from spatial_forcing.train import checkpoints

    begun = time.perf_counter()
    spec = RunSpec.read(folder)
    config = read_config(list(spec.flags))
    # Training asks for it only to log its name, and the environment may need what this machine lacks.
    env, config.env = config.env, None
    training = folder / "train" if spec.trained is None else Path(spec.trained)
    trained = spec.trained is None and train(config, spec, folder)
    if os.environ.get("RANK", "0") != "0":
        return
    if trained:
        cost = {"peak_memory_mb": round(peak_memory_mb()), "seconds": round(time.perf_counter() - begun, 1)}
        write_json(folder / COST, cost)
    found = checkpoints(training)
    for step in (step for step in spec.steps if not evaluation_path(folder, step).is_file()):
        if step not in found:
            raise CompareError(
                f"{training} has no checkpoint of step {step}. Remove {training.parent} to train again."
            )
        evaluate(spec, config, env, step, found[step], folder)


def train(config: Any, spec: RunSpec, folder: Path) -> bool:
    """Trains or resumes, or does nothing if training is complete; records start checksums.

    Returns whether it trained.
    """
    from spatial_forcing.compare.start import Start
    from spatial_forcing.train import checkpoint_step, train_or_continue

    last = folder / "train" / "checkpoints" / "last"
    if (last / "training_state").is_dir() and checkpoint_step(last) >= config.steps:
        return False
    siblings, elsewhere = (
        [folder.parent / name for name in names] for names in (spec.siblings, spec.started_elsewhere)
    )
    if last.exists():  # it is past its first steps
        train_or_continue(config, list(spec.flags))
    else:
        with Start(folder, siblings, elsewhere).noted():
            train_or_continue(config, list(spec.flags))
    return True


def peak_memory_mb() -> float:
    """Peak host memory of this process in megabytes. LeRobot logs that of the GPU."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1024 if sys.platform == "linux" else peak / 2**20  # macOS counts bytes


class Going:
    """Prints a line now and then, so that the log of a run that goes on grows: LeRobot draws no bars under
    SLURM, and whoever waits takes a run that prints nothing for hung.

    Args:
        what: goes on.
    """

    def __init__(self, what: str):
        self.what, self.count, self.said = what, 0, time.monotonic()

    def __call__(self) -> None:
        self.count += 1
        if time.monotonic() > self.said + EVERY:
            self.said = time.monotonic()
            print(f"{self.what}: {self.count} batches and control steps", flush=True)


def evaluate(spec: RunSpec, config: Any, env: Any, step: int, checkpoint: Path, folder: Path) -> None:
    """Evaluates one checkpoint and writes its results; of the last one, videos are recorded."""
    from lerobot.configs import PreTrainedConfig

    from spatial_forcing.heldout import heldout_measures
    from spatial_forcing.results import Evaluation
    from spatial_forcing.rollouts import roll_out
    from spatial_forcing.saved_policy import LoadedPolicy

    going = Going(f"Evaluating step {step}")
    # The checkpoint knows it; the flags do not when they name a --policy.path and training is over.
    loaded = LoadedPolicy(checkpoint, PreTrainedConfig.from_pretrained(checkpoint).device or "cpu")
    heldout: dict[str, Any] = {"step": step}
    if spec.heldout:
        frames = loaded.dataset(config.dataset.root or config.dataset.repo_id, spec.heldout)
        start = time.perf_counter()
        measured = heldout_measures(
            loaded, frames, most=spec.heldout_frames, rename_map=config.rename_map, going=going
        )
        heldout |= {
            "heldout_error": measured.error,
            "heldout_loss": measured.loss,
            "constant_error": measured.constant_error,
            "heldout_seconds": time.perf_counter() - start,
        }
    found = Evaluation(step=step, episodes=[])
    if env is not None:
        film = folder / "videos" if step == max(spec.steps) and spec.videos else None
        rolled = roll_out(
            loaded,
            env,
            episodes=spec.episodes,
            seed=spec.eval_seed,
            at_once=side_by_side(spec.flags, env, spec.episodes),
            videos=film,
            video_count=spec.videos,
            going=going,
        )
        videos = [str(Path(video).relative_to(folder)) for video in rolled.videos]
        found = rolled.model_copy(update={"videos": videos})
    found = found.model_copy(update=heldout)
    found.save(evaluation_path(folder, step))


def main() -> None:
    from spatial_forcing.guard import guarded
    from spatial_forcing.process_group import end_group_with_leader
    from spatial_forcing.processes import end_with_parent
    from spatial_forcing.threads import waiting_threads_sleep

    waiting_threads_sleep()
    end_group_with_leader()
    end_with_parent()
    guarded(lambda: run(Path(sys.argv[1])), lambda: "What is finished is kept.")


if __name__ == "__main__":
    main()
