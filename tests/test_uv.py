"""Laws of the position embedding: its symmetries and its scale."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from spatial_forcing.uv import uv_position_embedding


@given(H=st.integers(1, 40), W=st.integers(1, 40), quarter=st.integers(1, 16))
def test_the_position_embedding_turns_with_the_image(H, W, quarter):
    uv_HWC = uv_position_embedding(H, W, 4 * quarter, dtype=torch.float64)
    vu_WHC = uv_position_embedding(W, H, 4 * quarter, dtype=torch.float64)
    u, v = uv_HWC.chunk(2, dim=-1)
    v_turned, u_turned = vu_WHC.transpose(0, 1).chunk(2, dim=-1)
    torch.testing.assert_close((u, v), (u_turned, v_turned))
    # Sine is odd and cosine even in each coordinate, which is zero at the centre.
    sign = torch.cat([-torch.ones(quarter), torch.ones(quarter)])
    torch.testing.assert_close(u.flip(1), u * sign)
    torch.testing.assert_close(v.flip(0), v * sign)


def test_the_position_embedding_spans_the_unit_circle():
    H, W = 30, 40
    uv_HWC = uv_position_embedding(H, W, 4, dtype=torch.float64)  # one wavelength: sin u, cos u, sin v, cos v
    u_HW, v_HW = uv_HWC[..., 0].asin(), uv_HWC[..., 2].asin()
    step_u, step_v = u_HW[0, 1] - u_HW[0, 0], v_HW[1, 0] - v_HW[0, 0]
    torch.testing.assert_close(step_u, step_v)  # square cells
    corner = torch.stack([u_HW[-1, -1] + step_u / 2, v_HW[-1, -1] + step_v / 2])
    assert corner.norm().item() == pytest.approx(1.0)
    assert uv_HWC.abs().max() <= 1


@pytest.mark.parametrize(("size", "says"), [((0, 4, 8), "one row"), ((4, 4, 6), "multiple of 4")])
def test_position_embeddings_that_cannot_be(size, says):
    with pytest.raises(ValueError, match=says):
        uv_position_embedding(*size)
