"""Training through LeRobot's own trainer, with its logged metrics saved to a file.

``spatial-forcing train`` takes exactly the flags of ``lerobot-train`` and adds ``metrics.jsonl`` in the
output folder, which the report draws its curves from: a JSON object per logged step, and one with
``eval_loss`` per evaluation on held-out episodes (``--eval_steps``).
"""

import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.logging_utils import MetricsTracker

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.files import write_text
from spatial_forcing.patches import read_chunks_without_images

METRICS = "metrics.jsonl"
EVAL_LOSS = re.compile(r"step (\d+): eval_loss=(\S+)")


class MetricsFile(logging.Filter):
    """Logging filter that writes LeRobot's metrics and evaluation losses to ``<output_dir>/metrics.jsonl``.

    An evaluation loss has the four decimals that LeRobot prints.
    A filter on the root logger and not a handler, because LeRobot clears the handlers when training starts.
    The output folder is looked up when the first record comes, because LeRobot may choose it after training
    starts.
    """

    def __init__(self, config: TrainPipelineConfig):
        super().__init__()
        self.config = config

    def filter(self, record: logging.LogRecord) -> bool:
        row = logged_row(record.msg)
        if row is not None and self.config.output_dir is not None:
            folder = Path(self.config.output_dir)
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
        return True


def logged_row(message: Any) -> dict[str, Any] | None:
    """Extracts the metrics from a log message of LeRobot's trainer; None if there are none."""
    if isinstance(message, MetricsTracker):
        # A meter without an update in this window reads 0, which is not a measurement.
        means = {name: meter.avg for name, meter in message.metrics.items() if meter.count}
        return {"step": message.steps} | means
    # LeRobot hands evaluation losses to nobody but W&B, and prints them.
    found = EVAL_LOSS.fullmatch(message) if isinstance(message, str) else None
    return None if found is None else {"step": int(found[1]), "eval_loss": float(found[2])}


def log_short_runs(config: TrainPipelineConfig) -> None:
    """Makes a run shorter than ``log_freq``, which would log nothing, log once after its last step."""
    if 0 < config.steps < config.log_freq:
        if os.environ.get("RANK", "0") == "0":  # of several processes one says it
            print(
                f"spatial-forcing: log_freq {config.log_freq} is more than steps {config.steps}: this run is "
                "logged once, after its last step. Give a smaller --log_freq to see more.",
                file=sys.stderr,
            )
        config.log_freq = config.steps


def train_policy(config: TrainPipelineConfig) -> Path:
    """Runs LeRobot's trainer in this process and keeps its metrics. Returns the output folder."""
    from lerobot.scripts.lerobot_train import train

    read_chunks_without_images()
    metrics, root = MetricsFile(config), logging.getLogger()
    root.addFilter(metrics)
    try:
        train(config)
    finally:
        root.removeFilter(metrics)
    assert config.output_dir is not None
    return Path(config.output_dir)


def train_or_continue(config: TrainPipelineConfig, arguments: Sequence[str] = ()) -> Path:
    """Trains, or resumes an interrupted training from its last checkpoint, or does nothing if complete.

    Args:
        config: of the training.
        arguments: the flags that it came from, which LeRobot reads again for ``--policy.path``.

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
        found = {path.name for path in folder.iterdir()}
        if found == {"wandb"}:
            raise SpatialForcingError(
                f"{folder} holds files of W&B alone: of a run that ended before it logged a step, or of "
                "something else. Remove it, or choose another output folder."
            )
        if found - {METRICS, "checkpoints", "wandb"}:
            raise SpatialForcingError(
                f"{folder} exists and is not a training run of ours. Choose another output folder."
            )
        # Stopped before its first checkpoint: there is nothing to continue from.
        shutil.rmtree(folder)
    with command_line(*arguments):
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
        write_text(path, "".join(line + "\n" for line in rows))


@contextmanager
def command_line(*arguments: str) -> Iterator[None]:
    """Context with ``sys.argv`` replaced, from which LeRobot reads some of its configuration."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before
