"""Diagnostics of LeRobot policies in training: what is logged and when, and that training does not notice."""

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from small_policies import small_batch, small_policy

from lerobot_policy_spatial_forcing.forcing_config import ForcingConfig
from spatial_forcing.errors import SpatialForcingError

NAMES = {"cosine_view_0", "cosine_view_1", "cka", "effective_rank", "gradient_ratio", "gradient_cosine"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("policies")


def trained(folder: Path, every: int, steps: int = 3, **forcing: Any) -> tuple[Any, list[dict[str, float]]]:
    """ACT after some steps, which draw dropout masks and latents, and what it logged."""
    policy = small_policy("act", folder, forcing={"diagnostics_every": every} | forcing)
    optimizer = torch.optim.AdamW(policy.get_optim_params(), lr=1e-3)
    batch, logged = small_batch(policy), []
    torch.manual_seed(3)
    for _ in range(steps):
        loss, logs = policy(dict(batch))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        logged.append(logs)
    return policy, logged


def test_training_is_the_same_to_the_bit_with_and_without(folder):
    with_them, logged = trained(folder, every=1)
    random_state = torch.get_rng_state()
    without, plain = trained(folder, every=0)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [row["action_loss"] for row in logged] == [row["action_loss"] for row in plain]
    a, b = with_them.state_dict(), without.state_dict()
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert all(row.keys() - plain_row.keys() == NAMES for row, plain_row in zip(logged, plain, strict=True))


def test_they_are_measured_every_so_many_steps_and_repeated_in_between(folder):
    _, logged = trained(folder, every=2)
    first, second, third = ({name: row[name] for name in NAMES} for row in logged)
    assert first == second
    assert all(first[name] != third[name] for name in NAMES)
    assert 0 < third["cka"] < 1 < third["effective_rank"]
    assert -1 < third["gradient_cosine"] < 1


def test_without_pull_the_tokens_are_measured_still(folder):
    """The baseline of a comparison is described by the same numbers."""
    _, (logs,) = trained(folder, every=1, steps=1, loss_weight=0.0)
    assert NAMES - {"gradient_ratio", "gradient_cosine"} == NAMES & logs.keys()


def test_of_several_alignments_the_names_say_which(folder):
    entries = [{"teacher": "untrained-tiny", "site": site} for site in ("blocks.1", "blocks.2")]
    policy = small_policy("act", folder, forcing={"teacher": None, "alignments": entries})
    _, logs = policy(small_batch(policy))
    assert {"blocks_1/cka", "blocks_2/effective_rank", "blocks_2/cosine_view_1", "gradient_cosine"} <= set(
        logs
    )


def test_where_gradients_at_the_tap_cannot_be_measured_training_goes_on_and_says_so_once(folder, caplog):
    from torch.utils.checkpoint import checkpoint

    policy = small_policy("act", folder, forcing={"diagnostics_every": 1})
    layer = policy.model.encoder.layers[-1]
    plain = layer.forward
    layer.forward = lambda x, *args, **kwargs: checkpoint(
        lambda y: plain(y, *args, **kwargs), x, use_reentrant=True
    )
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            loss, logs = policy(small_batch(policy))
            loss.backward()
    assert NAMES & logs.keys() == NAMES - {"gradient_ratio", "gradient_cosine"}
    (said,) = [record.getMessage() for record in caplog.records if "use_reentrant" in record.getMessage()]
    assert "gradient_cosine" in said


def test_the_earlier_name_of_the_option_says_the_new_one():
    with pytest.raises(SpatialForcingError, match=r"write --policy.forcing.diagnostics_every=7"):
        ForcingConfig(ratio_every=7)
    with pytest.raises(SpatialForcingError, match=r"diagnostics_every.*0 or more.*got -3"):
        ForcingConfig(diagnostics_every=-3)
