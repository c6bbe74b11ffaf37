"""Train/held-out split of the episodes, and fractions of the training episodes; the same for all arms."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from spatial_forcing.compare.flags import CompareError


@dataclass(frozen=True)
class Split:
    """Split of episodes into training and held-out ones.

    Attributes:
        train: in the order in which shares of them are taken: smaller shares are parts of larger ones.
        heldout: ascending.
    """

    train: tuple[int, ...]
    heldout: tuple[int, ...]

    def share(self, fraction: float) -> list[int]:
        """The episodes of a fraction of the training data, ascending; at least one."""
        return sorted(self.train[: max(1, round(fraction * len(self.train)))])


def split_episodes(
    tasks: dict[int, str], *, holdout: float = 0.1, heldout: Sequence[int] = (), seed: int = 0
) -> Split:
    """Splits episodes into training and held-out ones, stratified by task.

    Args:
        tasks: episode -> its task.
        holdout: share of the episodes of a task that are held out, rounded up.
        heldout: these are held out instead.
        seed: of the choice and of the order.

    Raises:
        CompareError: nothing would be left to train on, or nothing held out; or no such episode.
    """
    rng = np.random.default_rng(seed)
    by_task: dict[str, list[int]] = defaultdict(list)
    for episode in sorted(tasks):
        by_task[tasks[episode]].append(episode)
    queues = [[int(e) for e in rng.permutation(episodes)] for episodes in by_task.values()]
    if heldout:
        _check_there(heldout, tasks)
        chosen = {*heldout}
    else:
        if not 0 < holdout < 1:
            raise CompareError(f"--holdout is a share of the episodes, above 0 and below 1; got {holdout}.")
        chosen = {e for queue in queues for e in queue[: ceil(holdout * len(queue))]}
    train = _in_turn([[e for e in queue if e not in chosen] for queue in queues])
    if not train or not chosen:
        raise CompareError(
            f"Of {len(tasks)} episodes {len(chosen)} would be held out and {len(train)} trained on; both "
            "take at least one. Record more episodes"
            + (", or name those to hold out with --holdout-episodes." if len(tasks) > 1 else ".")
        )
    return Split(tuple(train), tuple(sorted(chosen)))


def _check_there(heldout: Sequence[int], tasks: dict[int, str]) -> None:
    unknown = [episode for episode in heldout if episode not in tasks]
    if unknown:
        there = f"{min(tasks)} to {max(tasks)}" if len(tasks) == max(tasks) - min(tasks) + 1 else len(tasks)
        raise CompareError(
            f"--holdout-episodes names {unknown[0]}, which is not among the episodes of the data set "
            f"({there})."
        )


def _in_turn(queues: list[list[int]]) -> list[int]:
    """Interleaves queues round-robin, so that every fraction has all tasks as far as possible."""
    longest = max(map(len, queues), default=0)
    return [queue[at] for at in range(longest) for queue in queues if at < len(queue)]


def tasks_of(meta: Any, episodes: Sequence[int] | None) -> dict[int, str]:
    """Mapping from episode to task, from a LeRobotDataset's metadata.

    Args:
        meta: of the data set.
        episodes: only these; all if None.
    """
    wanted = range(meta.total_episodes) if episodes is None else episodes
    return {episode: "; ".join(meta.episodes[episode]["tasks"]) for episode in wanted}
