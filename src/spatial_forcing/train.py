"""Training through LeRobot's own trainer, with its logged numbers kept as a file.

``spatial-forcing train`` takes exactly the flags of ``lerobot-train`` and adds one thing: ``metrics.jsonl``
in the output folder, a JSON object per logged step, which the report draws its curves from.
"""

import json
import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import DatasetConfig, WandBConfig
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.logging_utils import MetricsTracker

from spatial_forcing.chunks import chunks_without_pictures
from spatial_forcing.errors import SpatialForcingError

METRICS = "metrics.jsonl"


class MetricsFile(logging.Filter):
    """Writes every MetricsTracker that LeRobot logs to ``<output_dir>/metrics.jsonl``.

    A filter on the root logger and not a handler, because LeRobot clears the handlers when training starts.
    The output folder is looked up when the first record comes, because LeRobot may choose it after training
    starts.
    """

    def __init__(self, config: TrainPipelineConfig):
        super().__init__()
        self.config = config

    def filter(self, record: logging.LogRecord) -> bool:
        tracker = record.msg
        if isinstance(tracker, MetricsTracker) and self.config.output_dir is not None:
            row = {"step": tracker.steps}
            # A meter without an update in this window reads 0, which is not a measurement.
            row |= {name: meter.avg for name, meter in tracker.metrics.items() if meter.count}
            folder = Path(self.config.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        return True


def train_policy(config: TrainPipelineConfig) -> Path:
    """Runs LeRobot's trainer in this process and keeps its metrics. Returns the output folder."""
    from lerobot.scripts.lerobot_train import train

    metrics, root = MetricsFile(config), logging.getLogger()
    root.addFilter(metrics)
    try:
        with chunks_without_pictures():
            train(config)
    finally:
        root.removeFilter(metrics)
    assert config.output_dir is not None
    return Path(config.output_dir)


def train_config(
    policy: PreTrainedConfig,
    dataset_root: Path,
    output_dir: Path,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    save_every: int,
    log_every: int = 10,
) -> TrainPipelineConfig:
    """A LeRobot configuration for a local data set: offline, nothing pushed, nothing logged elsewhere."""
    policy.push_to_hub = False
    return TrainPipelineConfig(
        dataset=DatasetConfig(repo_id=f"local/{dataset_root.name}", root=str(dataset_root)),
        policy=policy,
        output_dir=output_dir,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        # Small pictures that the file cache holds: a second process costs more to start than it saves.
        num_workers=0,
        log_freq=log_every,
        save_freq=save_every,
        env_eval_freq=0,
        wandb=WandBConfig(enable=False),
    )


def train_or_continue(config: TrainPipelineConfig) -> Path:
    """Trains, or continues an interrupted training from its last checkpoint, or does nothing if it is
    complete.

    Raises:
        SpatialForcingError: the output folder holds something that is not a LeRobot run.
    """
    folder = Path(config.output_dir)  # type: ignore[arg-type]
    last = folder / "checkpoints" / "last"
    if (last / "training_state" / "training_step.json").is_file():
        if checkpoint_step(last) >= config.steps:
            return folder
        with command_line(f"--config_path={last / 'pretrained_model' / 'train_config.json'}"):
            resumed = TrainPipelineConfig.from_pretrained(str(last / "pretrained_model"))
            resumed.resume = True
            truncate_metrics(folder / METRICS, checkpoint_step(last))
            return train_policy(resumed)
    if folder.exists():
        if {p.name for p in folder.iterdir()} - {METRICS, "checkpoints"}:
            raise SpatialForcingError(
                f"{folder} exists and is not a training run of ours. Choose another output folder."
            )
        # Stopped before its first checkpoint: there is nothing to continue from.
        shutil.rmtree(folder)
    with command_line():
        return train_policy(config)


def checkpoint_step(checkpoint: Path) -> int:
    """The step at which LeRobot wrote a checkpoint."""
    return json.loads((checkpoint / "training_state" / "training_step.json").read_text())["step"]


def checkpoints(run: Path) -> dict[int, Path]:
    """All checkpoints of a run: step -> folder with the policy."""
    found = (run / "checkpoints").glob("[0-9]*")
    return {int(path.name): path / "pretrained_model" for path in sorted(found)}


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The logged rows of a run so far; an empty list if there are none."""
    path = run / METRICS
    if not path.is_file():
        return []
    # The last line may be half written while the run goes on.
    lines = path.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def truncate_metrics(path: Path, step: int) -> None:
    """Drops the rows after ``step``, which a continued run writes again."""
    if path.is_file():
        rows = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]
        path.write_text("".join(line + "\n" for line in rows))


@contextmanager
def command_line(*arguments: str) -> Iterator[None]:
    """LeRobot reads some of its configuration from ``sys.argv``: show it these arguments, not ours."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
