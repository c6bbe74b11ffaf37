"""The options of ``spatial-forcing eval``; ``command.py`` does what they ask for."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

# Rollouts begin with this seed; demonstrations of the embedded world never use such seeds (see sim.env).
EVAL_SEED = 1_000_000


@dataclass
class Eval:
    """Evaluate policies on the same fixed episodes of an environment: `eval <options> -- <--env flags>`."""

    policies: tuple[str, ...] = ()
    """Policies as name=where: plain=runs/a forced=runs/b. Where: a folder with a checkpoint, a run of
    lerobot-train, or a name on the Hub. The others are compared with the first."""
    checkpoint: Path | None = None
    """Folder of one policy checkpoint (``.../pretrained_model``), in place of --policies."""
    task: str = "reach-v3"
    """Task of the embedded world, where no environment is given after --."""
    episodes: int = 25
    """Number of episodes per task and policy."""
    seed: int = EVAL_SEED
    """Seed of the first episode; episode i has seed + i, and the i-th initial state where a task has a list
    of them (LIBERO)."""
    out: Path | None = None
    """Folder for eval.json, eval.md and videos. The same command continues an interrupted evaluation. If
    None, results are printed and nothing is kept."""
    workers: int = 1
    """Number of processes that share the episodes; results do not depend on it. 1 starts none."""
    batch_size: int = 1
    """Number of episodes side by side in a process: faster on a GPU, and part of what decides the result, as
    sums are rounded differently."""
    rendering: Literal["stock", "cheap"] = "stock"
    """Rendering of LIBERO: stock, or cheap (no antialiasing, shadows and reflections). Evaluate as the
    demonstrations were rendered; public ones are stock."""
    threads: int = 1
    """Number of threads per process on a CPU; decides the last digits, so it is noted."""
    videos: int = 2
    """Number of episodes per task and policy to record as videos, with --out."""
    dataset: str | None = None
    """Data set that the policies were trained on, for the guards; if None, the one noted in a checkpoint's
    train_config.json."""
    check: bool = False
    """Run the guards alone: compare policies, their training data and the environment, and roll out nothing.
    The exit status is 1 if something is wrong."""
    anyway: bool = False
    """Evaluate even if the guards find something wrong."""
    beside: tuple[Path, ...] = ()
    """Folders of earlier evaluations on the same episodes, whose policies join table and tests."""
    patience: float = 1800.0
    """Seconds after which a batch of episodes that has not ended counts as hung, with several workers."""
    device: str = "cpu"
    """Device that the policies run on."""

    def run(self, flags: Sequence[str] = ()) -> None:
        """Runs the evaluation.

        Args:
            flags: what follows ``--``: LeRobot's flags of an environment, ``--rename_map``, and
                ``--policy.<option>`` for all policies.

        Raises:
            SpatialForcingError: it cannot be run as asked, or an episode failed.
        """
        from spatial_forcing.evaluation.command import evaluate_policies

        if not evaluate_policies(self, list(flags)):
            sys.exit(1)
