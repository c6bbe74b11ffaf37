"""Laws of the losses: what each is, ignores and leaves alone; and that one more is one file."""

import math

import pytest
import torch
import torch.nn.functional as F
from extension import installed
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.losses import LOSSES, loss_of
from spatial_forcing.losses.cosine import cosine_distance
from spatial_forcing.losses.relations import relation_distance
from spatial_forcing.losses.smooth_l1 import smooth_l1

seeds, scales = st.integers(0, 10_000), st.floats(1e-2, 1e2)


def random_pair(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """projected_BNC, target_BNC, valid_BN with at least two valid tokens in the first sample."""
    generator = torch.Generator().manual_seed(seed)
    projected, target = torch.randn(2, 2, 5, 8, generator=generator).unbind(0)
    valid = torch.rand(2, 5, generator=generator) < 0.6
    valid[0, :2] = True
    return projected, target, valid


def rotation(seed: int) -> Tensor:
    """A random orthonormal (8, 8)."""
    return torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed)))[0]


# ---- of every loss -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds, a=scales, b=scales)
def test_it_is_zero_for_parallel_tokens_and_ignores_their_scale(name, seed, a, b):
    projected, target, valid = random_pair(seed)
    loss = loss_of(name)
    each_BN1 = a * torch.rand(2, 5, 1) + 1e-2
    assert loss(each_BN1 * target, target, valid).item() == pytest.approx(0, abs=1e-6)
    expected = loss(projected, target, valid)
    assert expected > 1e-4
    assert loss(a * projected, b * target, valid).item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, 0.0])
@given(seed=seeds)
def test_it_ignores_what_is_not_valid(name, poison, seed):
    projected, target, valid = random_pair(seed)
    loss = loss_of(name)
    dirty = torch.where(valid[..., None], projected, poison).requires_grad_()
    distance = loss(dirty, torch.where(valid[..., None], target, poison), valid)
    distance.backward()
    assert torch.equal(distance, loss(projected, target, valid))
    assert dirty.grad.isfinite().all()
    assert (dirty.grad[~valid] == 0).all()
    assert (dirty.grad[0, :2].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_zero_with_a_gradient_of_zero_where_nothing_is_valid(name):
    projected, target, valid = random_pair(0)
    projected.requires_grad_()
    distance = loss_of(name)(projected, target, valid & False)
    distance.backward()
    assert distance == 0
    assert (projected.grad == 0).all()


@pytest.mark.parametrize("name", LOSSES)
def test_it_is_a_scalar_of_float32_even_under_autocast(name):
    projected, target, valid = random_pair(0)
    expected = loss_of(name)(projected, target, valid)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(loss_of(name)(projected, target, valid), expected)
    half = loss_of(name)(projected.half(), target.double(), valid)
    assert (half.dtype, half.ndim) == (torch.float32, 0)
    assert half.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_that_do_not_fit(name):
    projected, target, valid = random_pair(0)
    with pytest.raises(SpatialForcingError, match=r"one shape \(B, N, C\)"):
        loss_of(name)(projected[:, :4], target, valid)


# ---- of one ------------------------------------------------------------------------------------------------


@given(seed=seeds)
def test_smooth_l1_is_what_it_says_and_at_most_the_cosine(seed):
    projected, target, valid = random_pair(seed)
    p, y = (8**0.5 * F.normalize(x[valid].double(), dim=-1) for x in (projected, target))
    difference = (p - y).abs()
    expected = torch.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    distance, cosine = smooth_l1(projected, target, valid), cosine_distance(projected, target, valid)
    assert distance.item() == pytest.approx(expected.item(), rel=1e-5)
    assert distance <= cosine + 1e-6
    near = target + 0.1 * projected
    expected = cosine_distance(near, target, valid).item()
    y, p = (8**0.5 * F.normalize(x[valid], dim=-1) for x in (target, near))
    if (p - y).abs().max() < 1:
        assert smooth_l1(near, target, valid).item() == pytest.approx(expected, rel=1e-3)


@given(seed=seeds)
def test_relations_are_those_of_the_pairs_of_valid_tokens(seed):
    projected, target, valid = random_pair(seed)
    terms = []
    for sample in range(2):
        there = valid[sample].nonzero().flatten().tolist()
        for i in there:
            for j in there:
                if i != j:
                    of_p = F.cosine_similarity(projected[sample, i], projected[sample, j], dim=0)
                    of_y = F.cosine_similarity(target[sample, i], target[sample, j], dim=0)
                    terms.append((of_p - of_y) ** 2)
    expected = torch.stack(terms).mean().item()
    assert relation_distance(projected, target, valid).item() == pytest.approx(expected, rel=1e-4)


@given(seed=seeds)
def test_relations_do_not_change_with_a_rotation_of_either_side(seed):
    projected, target, valid = random_pair(seed)
    expected = relation_distance(projected, target, valid).item()
    turned = relation_distance(projected @ rotation(seed), target @ rotation(seed + 1), valid)
    assert turned.item() == pytest.approx(expected, rel=1e-4)
    # Where the cosine sees nothing in common, the relations may be all the same.
    opposite = target @ rotation(seed)
    assert relation_distance(opposite, target, valid).item() == pytest.approx(0, abs=1e-6)
    assert cosine_distance(opposite, target, valid) > 0.05


def test_one_token_has_no_relations():
    projected, target, valid = random_pair(0)
    valid = torch.zeros_like(valid)
    valid[:, 0] = True
    assert relation_distance(projected, target, valid) == 0


# ---- by name -----------------------------------------------------------------------------------------------


def test_losses_by_name_and_as_functions():
    assert {"cosine", "relations", "smooth_l1"} <= set(LOSSES)
    assert loss_of("cosine") is cosine_distance
    assert loss_of(relation_distance) is relation_distance
    with pytest.raises(UnknownNameError, match=r"Unknown loss 'cosin'. Did you mean 'cosine'"):
        loss_of("cosin")
    with pytest.raises(SpatialForcingError, match=r"a name \(cosine.*or a function.*got 3"):
        loss_of(3)  # type: ignore[arg-type]


@pytest.fixture
def found_again():
    """Losses are looked for when the test asks, and again after it."""
    LOSSES.refresh()
    yield
    LOSSES.refresh()


def test_a_loss_of_another_package_is_one_file_and_an_entry_point(found_again, tmp_path, monkeypatch):
    source = "def euclid(p, y, valid): return ((p - y).square().sum(-1) * valid).sum() / valid.sum()\n"
    installed(
        tmp_path, monkeypatch, {"euclid_loss": source}, "spatial_forcing.losses", euclid="euclid_loss:euclid"
    )
    assert "euclid" in LOSSES
    projected, target, valid = random_pair(0)
    expected = (projected - target)[valid].square().sum(-1).mean().item()
    assert loss_of("euclid")(projected, target, valid).item() == pytest.approx(expected, rel=1e-5)


def test_a_loss_of_ours_is_one_file(found_again, tmp_path, monkeypatch):
    import spatial_forcing.losses as package

    (tmp_path / "halved.py").write_text(
        "from spatial_forcing.losses.cosine import cosine_distance\n"
        "LOSS = lambda p, y, valid: cosine_distance(p, y, valid) / 2\n"
    )
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert "halved" in LOSSES
    pair = random_pair(0)
    assert loss_of("halved")(*pair).item() == pytest.approx(cosine_distance(*pair).item() / 2)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        (
            "import nothing_of_the_kind",
            r"'mine' of the package extension \(mine_loss:mine\) cannot be loaded",
        ),
        ("mine = 3", "is no function: found int"),
    ],
)
def test_entry_points_that_do_not_work(found_again, tmp_path, monkeypatch, source, says):
    installed(tmp_path, monkeypatch, {"mine_loss": source}, "spatial_forcing.losses", mine="mine_loss:mine")
    with pytest.raises(SpatialForcingError, match=says):
        loss_of("mine")


def test_of_two_losses_of_one_name_ours_stays(found_again, tmp_path, monkeypatch, caplog):
    source = {"their_loss": "def cosine(p, y, valid): return p.sum()\n"}
    installed(tmp_path, monkeypatch, source, "spatial_forcing.losses", cosine="their_loss:cosine")
    assert loss_of("cosine") is cosine_distance
    assert "The loss 'cosine' of the package extension is left out: this package has one" in caplog.text
