"""The metrics of a run of `spatial-forcing train` as TensorBoard curves. LeRobot 0.6.1 has no TensorBoard.

pip install tensorboard
python examples/metrics_to_tensorboard.py run
tensorboard --logdir run/tensorboard
"""

import shutil
import sys
from pathlib import Path

from spatial_forcing.train import read_metrics

try:
    from torch.utils.tensorboard import SummaryWriter
except ImportError:
    sys.exit("This needs tensorboard. Install it with: pip install tensorboard")


def main(run: Path) -> None:
    """Writes every number of every row under its name, at its step; what was written before is replaced."""
    folder = run / "tensorboard"
    shutil.rmtree(folder, ignore_errors=True)
    rows = read_metrics(run)
    if not rows:
        sys.exit(f"{run} has no rows in metrics.jsonl: train with spatial-forcing train, not lerobot-train.")
    with SummaryWriter(str(folder)) as writer:
        for row in rows:
            for name, value in row.items():
                if name != "step":
                    writer.add_scalar(name, value, row["step"])
    print(f"Wrote {len(rows)} rows to {folder}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("Say which run: python examples/metrics_to_tensorboard.py <output_dir of the training>")
    main(Path(sys.argv[1]))
