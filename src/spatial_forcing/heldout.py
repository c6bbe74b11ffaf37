"""Action error and training loss of a policy on held-out demonstrations.

Shapes: n actions of all frames, B batch, T chunk, A action.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from spatial_forcing.saved_policy import LoadedPolicy, PolicyError

# Frames at a time; fixed, as draws go by batches.
HELDOUT_BATCH = 64


@contextmanager
def fixed_draws(seed: int) -> Iterator[None]:
    """Context with torch's random numbers seeded; afterwards they continue as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


class Heldout(NamedTuple):
    """Measures of a policy on held-out demonstrations.

    Attributes:
        error: mean absolute error of the sampled action chunk, over steps inside the episode, in the units of
            the policy's normalised actions (standard deviations for most).
        loss: the policy's own training loss.
        constant_error: what the error would be of predicting the mean of these actions, whatever is seen.
    """

    error: float
    loss: float
    constant_error: float


@torch.no_grad()
def heldout_measures(
    loaded: LoadedPolicy,
    frames: Any,
    *,
    most: int | None = None,
    rename_map: Mapping[str, str] | None = None,
    going: Callable[[], None] = lambda: None,
) -> Heldout:
    """Action error and training loss of a policy on held-out demonstrations.

    Noise and time of flow and diffusion policies are drawn from seeds that depend on the batch alone, so that
    policies, and checkpoints of one, are compared on the same draws.

    Args:
        loaded: the policy.
        frames: the data set, with the action chunks that the policy is trained on; see
            :meth:`LoadedPolicy.dataset`.
        most: at most so many frames are looked at, evenly spread; all if None.
        rename_map: the data set's names of observations -> the policy's, where they differ.
        going: called after every batch.

    Raises:
        PolicyError: no frames.
    """
    from lerobot.utils.constants import ACTION

    count = len(frames)
    if not count:
        raise PolicyError("There is no held-out frame to measure on.")
    if most is not None and most < count:
        frames = torch.utils.data.Subset(frames, torch.linspace(0, count - 1, most).round().int().tolist())
    loaded.policy.eval()
    error, loss, seen = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    actions = []
    for number, batch in enumerate(loaded.batches(frames, HELDOUT_BATCH, rename_map)):
        size = len(batch["index"])
        with fixed_draws(number), loaded.precision():
            loss += loaded.policy.forward(dict(batch))[0].double().cpu() * size
        with fixed_draws(number), loaded.precision():
            error += chunk_error(loaded.policy, dict(batch)).double().cpu() * size
        seen += size
        actions.append(batch[ACTION][inside_of(batch)].float().cpu())
        going()
    actions_nA = torch.cat(actions)
    constant = (actions_nA - actions_nA.mean(0)).abs().mean()
    return Heldout(float(error / seen), float(loss / seen), float(constant))


def inside_of(batch: dict[str, Any]) -> Tensor:
    """inside_BT: which steps of a batch's action chunks are inside the episode."""
    from lerobot.utils.constants import ACTION

    action_BTA = batch[ACTION]
    none_BT = torch.zeros(action_BTA.shape[:2], dtype=torch.bool)
    return ~batch.get("action_is_pad", none_BT).to(action_BTA.device)


def chunk_error(policy: Any, batch: dict[str, Any]) -> Tensor:
    """Mean absolute error of the chunk that a policy samples, over steps inside the episode."""
    from lerobot.utils.constants import ACTION

    policy.reset()
    inside_BT, action_BTA = inside_of(batch), batch.pop(ACTION)
    batch.pop("action_is_pad", None)
    sampled_BTA = policy.predict_action_chunk(batch)
    policy.reset()
    # Some policies sample more actions than they are trained on, or pad their width.
    T, A = (min(sizes) for sizes in zip(sampled_BTA.shape[1:], action_BTA.shape[1:], strict=True))
    error_BT = (sampled_BTA[:, :T, :A] - action_BTA[:, :T, :A]).abs().mean(-1)
    return (error_BT * inside_BT[:, :T]).sum() / inside_BT[:, :T].sum().clamp(min=1)
