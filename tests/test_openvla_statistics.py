"""Action tokens of OpenVLA, and the normalisation of its actions and states."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.openvla.statistics import Bounds, Statistics, StatisticsError
from spatial_forcing.openvla.tokens import ActionTokens


def test_action_tokens_are_those_of_the_public_tokenizer():
    tokens, values = ActionTokens(32000), np.linspace(-1.2, 1.2, 4001)
    edges = np.linspace(-1, 1, 256)
    ids = tokens.encode(torch.from_numpy(values))
    assert ids.tolist() == (32000 - np.digitize(values.clip(-1, 1), edges)).tolist()
    assert (ids.min(), ids.max()) == (31744, 31999)
    assert tokens.are_actions(ids).all()
    assert not tokens.are_actions(torch.tensor([-100, 2, 31743, 32000])).any()
    back = tokens.decode(ids).double().numpy()
    assert np.abs(back - values.clip(-1, 1)).max() <= 1 / 255 + 1e-6


def record(**changed) -> dict:
    bounds = {"q01": [-1.0, 2.0, 5.0], "q99": [1.0, 4.0, 5.0], "mask": [True, True, True]}
    return {"action": {**bounds, "min": [-2.0, 0.0, 5.0], "max": [2.0, 8.0, 5.0], **changed}}


@pytest.mark.parametrize("normalisation", ["q99", "bounds"])
def test_unnormalising_undoes_normalising_where_the_mask_says_so(normalisation):
    bounds = Statistics({"a": record(mask=[True, False, True])}, normalisation).bounds("a")
    values = torch.tensor([[0.5, 100.0, 5.0], [-0.25, -3.0, 5.0]])
    scaled = bounds.normalise(values)
    assert_close(bounds.unnormalise(scaled), values)
    assert torch.equal(scaled[:, 1], values[:, 1])
    assert torch.equal(scaled[:, 2], torch.zeros(2))  # a number that never changes
    assert scaled[0, 0] == (0.5 if normalisation == "q99" else 0.25)
    assert torch.equal(bounds.normalise(torch.tensor([9.0, 9.0, 9.0]))[:2], torch.tensor([1.0, 9.0]))
    assert bounds.normalise(values.half()).dtype == torch.float16


def test_statistics_that_are_not_there_are_named():
    two = Statistics({"libero_spatial_no_noops": record(), "libero_goal_no_noops": record()})
    with pytest.raises(UnknownNameError, match=r"libero_goal'\. Did you mean 'libero_goal_no_noops'"):
        two.bounds("libero_goal")
    with pytest.raises(StatisticsError, match=r"found 2 \(libero_goal_no_noops, libero_"):
        two.bounds()
    with pytest.raises(StatisticsError, match=r"q01 and q99 of 'proprio'.*no 'proprio'"):
        two.bounds("libero_goal_no_noops", "proprio")
    with pytest.raises(StatisticsError, match="of one length"):
        Statistics({"a": record(mask=[True])}).bounds()
    with pytest.raises(StatisticsError, match=r"action\.q99 of 'a' must be a list of numbers"):
        Statistics({"a": record(q99=[1.0, "x", 2.0])}).bounds()
    with pytest.raises(StatisticsError, match="found a list under 'a'"):
        Statistics({"a": []})
    with pytest.raises(ValueError, match="3 numbers in the last dimension"):
        Bounds((0.0,) * 3, (1.0,) * 3, (True,) * 3).normalise(torch.zeros(2, 4))
