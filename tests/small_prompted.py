"""Batches for LeRobot's policies that take images in a prompt, through their own preprocessor's steps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from spatial_forcing.hosts.registry import RECORDS


@contextmanager
def tracked_crops() -> Iterator[Any]:
    """While inside, GR00T's preprocessor says what it cropped; gives LeRobot's module of it."""
    from lerobot.policies.groot import processor_groot as groot

    from spatial_forcing import patches

    patches.undo_all()
    patches.track_groot_crops()
    try:
        yield groot
    finally:
        patches.undo_all()


def prompted(config: Any, raw: dict[str, Any], tasks: Sequence[str] | None = None, **options: Any) -> Any:
    """A raw batch through the steps of the policy's preprocessor that make prompts of it."""
    from lerobot.processor.converters import batch_to_transition, transition_to_batch

    tasks = ["move the hand to ball"] * len(raw["action"]) if tasks is None else list(tasks)
    transition = batch_to_transition(dict(raw) | {"task": tasks})
    small = RECORDS[config.type.removeprefix("sf_")].small
    assert small is not None
    assert small.steps is not None
    for step in small.steps(config, **options):
        transition = step(transition)
    return transition_to_batch(transition)
