"""Diagnostics of an alignment: laws of CKA, effective rank, cosine per view and of gradients at the tap."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spatial_forcing.align import SpatialForcing
from spatial_forcing.alignment import Alignment
from spatial_forcing.diagnostics import MAX_TOKENS, compare_tokens, effective_rank, linear_cka
from spatial_forcing.features import Features
from spatial_forcing.hosts.tiny import TinyVLA

VIEWS, WIDTH = 2, 16


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---- CKA ---------------------------------------------------------------------------------------------------


def test_cka_is_the_ratio_of_unbiased_estimates_of_hsic():
    """Against the formula with kernel matrices as it is printed."""
    X, Y = draw(12, 5).double() + 3, draw(12, 4, seed=1).double()
    Y[:, 0] += X[:, 0]

    def hsic(A: Tensor, B: Tensor) -> Tensor:
        K, L, n = A @ A.T, B @ B.T, len(A)
        K, L = K - K.diag().diag(), L - L.diag().diag()
        trace = (K @ L).trace() + K.sum() * L.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (K @ L).sum()
        return trace / (n * (n - 3))

    expected = hsic(X, Y) / (hsic(X, X) * hsic(Y, Y)).sqrt()
    assert linear_cka(X, Y).item() == pytest.approx(expected.item(), rel=1e-4)


def test_cka_is_one_up_to_rotation_shift_and_scale():
    X, Y = draw(200, 8), draw(200, 8, seed=1) + 0.5 * draw(200, 8)
    rotation = torch.linalg.qr(draw(8, 8, seed=2))[0]
    assert linear_cka(X, X).item() == pytest.approx(1, abs=1e-5)
    assert linear_cka(X, 1e-3 * X @ rotation + 7).item() == pytest.approx(1, abs=1e-4)
    assert linear_cka(1e9 * X @ rotation, Y - 2).item() == pytest.approx(linear_cka(X, Y).item(), abs=1e-4)
    assert 0.05 < linear_cka(X, Y) < 0.95
    assert linear_cka(X, Y).item() == pytest.approx(linear_cka(Y, X).item(), abs=1e-6)


def test_cka_of_independent_tokens_is_zero_on_average_however_few_they_are():
    values = [linear_cka(draw(20, 64, seed=i), draw(20, 64, seed=1000 + i)) for i in range(200)]
    spread = torch.stack(values)
    assert abs(spread.mean()) < 3 * spread.std() / math.sqrt(len(values))
    assert spread.min() < 0 < spread.max()


def test_cka_without_tokens_or_variation_is_nan():
    assert linear_cka(draw(3, 4), draw(3, 4)).isnan()
    assert linear_cka(draw(0, 4), draw(0, 4)).isnan()
    assert linear_cka(draw(9, 4), torch.ones(9, 4)).isnan()


# ---- effective rank ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_effective_rank_of_k_equal_singular_values_is_k(k):
    left, right = torch.linalg.qr(draw(40, k))[0], torch.linalg.qr(draw(8, k, seed=1))[0]
    assert effective_rank(5 * left @ right.T).item() == pytest.approx(k, rel=1e-4)


def test_the_effective_rank_counts_less_what_is_weak():
    X = draw(40, 8)
    weakened = X * torch.tensor([1.0, 1, 1, 1, 0.1, 0.1, 0.1, 0.1])
    assert 4 < effective_rank(weakened) < effective_rank(X) <= 8
    assert effective_rank(100 * X).item() == pytest.approx(effective_rank(X).item(), rel=1e-5)
    for nothing in (torch.zeros(5, 3), torch.zeros(0, 3), torch.full((5, 3), torch.nan)):
        assert effective_rank(nothing).isnan()


# ---- of a batch --------------------------------------------------------------------------------------------


def test_numbers_of_a_batch_are_of_its_valid_tokens():
    visual, projected, target = draw(3, 8, 16), draw(3, 8, 6, seed=1), draw(3, 8, 6, seed=2)
    valid = torch.ones(3, 8, dtype=torch.bool)
    valid[0, :4] = valid[2, 6] = False
    found = compare_tokens(visual, projected, target, valid, views=2)
    cosine = F.cosine_similarity(projected, target, dim=-1)
    for view, tokens in enumerate((slice(0, 4), slice(4, 8))):
        expected = cosine[:, tokens][valid[:, tokens]].mean()
        assert found[f"cosine_view_{view}"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert found["cka"].item() == pytest.approx(linear_cka(visual[valid], target[valid]).item(), abs=1e-6)
    broken = [torch.where(valid[..., None], t, torch.nan) for t in (visual, projected, target)]
    again = compare_tokens(*broken, valid, views=2)  # type: ignore[arg-type]
    assert found.keys() == again.keys()
    assert all(torch.equal(found[name], again[name]) for name in found)


def test_what_tokens_share_is_no_direction_of_the_effective_rank():
    visual, target, valid = draw(2, 32, 8), draw(2, 32, 4), torch.ones(2, 32, dtype=torch.bool)
    ranks = [
        compare_tokens(tokens, target, target, valid, views=1)["effective_rank"].item()
        for tokens in (visual, visual + 100)
    ]
    assert ranks[0] == pytest.approx(ranks[1], rel=1e-3)


def test_one_view_has_no_cosine_of_its_own_and_no_valid_token_gives_nan():
    visual, target = draw(2, 8, 4), draw(2, 8, 4)
    found = compare_tokens(visual, target, target, torch.zeros(2, 8, dtype=torch.bool), views=1)
    assert found.keys() == {"cka", "effective_rank"}
    assert all(number.isnan() for number in found.values())


def test_of_many_tokens_the_same_part_is_taken_and_torchs_random_numbers_stay():
    visual, target = draw(4, MAX_TOKENS, 8), draw(4, MAX_TOKENS, 8, seed=1)
    target = target + visual
    valid, before = torch.ones(visual.shape[:2], dtype=torch.bool), torch.get_rng_state()
    first, second = (compare_tokens(visual, target, target, valid, views=2) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], second[name]) for name in first)
    everything = linear_cka(visual.flatten(0, 1), target.flatten(0, 1))
    assert first["cka"].item() == pytest.approx(everything.item(), abs=0.05)


def test_autocast_changes_nothing():
    visual, target = draw(2, 32, 8), draw(2, 32, 4)
    valid = torch.ones(2, 32, dtype=torch.bool)
    plain = compare_tokens(visual, target, target, valid, views=2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = compare_tokens(visual, target, target, valid, views=2)
    assert all(torch.equal(plain[name], cast[name]) for name in plain)


# ---- SpatialForcing ----------------------------------------------------------------------------------------


class ConvTeacher(nn.Module):
    """A convolution with a patch of 7 pixels."""

    def __init__(self):
        super().__init__()
        self.width = 8
        self.conv = nn.Conv2d(3, 8, 7, 7)

    def forward(self, images_BV3HW: Tensor) -> Features:
        maps = self.conv(images_BV3HW.flatten(0, 1)).unflatten(0, images_BV3HW.shape[:2])
        return Features(maps.movedim(2, -1), torch.ones(*maps.shape[:2], *maps.shape[3:], dtype=torch.bool))


def small_step(*sites: str):
    """A SpatialForcing of these alignments, its action loss and its images."""
    torch.manual_seed(0)
    vla = TinyVLA(views=VIEWS, image_size=28, width=WIDTH, depth=4, heads=2, max_words=3, chunk=2)
    teacher, images = ConvTeacher(), torch.rand(3, VIEWS, 3, 28, 28)
    sf = SpatialForcing(vla.spatial_forcing_host(), [Alignment(site, teacher) for site in sites])
    with sf.watch():
        action = vla(images, torch.randint(1, 512, (3, 3)), torch.randn(3, 4)).square().mean()
    return vla, sf, action, images


def test_diagnostics_are_computed_when_asked_for_and_kept_until_then():
    _, sf, _, images = small_step("blocks.3")
    plain = sf(images)
    assert sf.diagnostics == {}
    diagnosed, logs = sf(images, diagnose=True), dict(sf.logs)
    assert torch.equal(plain, diagnosed)
    assert sf.diagnostics.keys() == {"cosine_view_0", "cosine_view_1", "cka", "effective_rank"}
    mean = (sf.diagnostics["cosine_view_0"] + sf.diagnostics["cosine_view_1"]) / 2
    assert mean.item() == pytest.approx(logs["cosine"].item(), abs=1e-6)
    kept = sf.diagnostics
    sf(images)
    assert sf.diagnostics is kept
    assert not any(number.requires_grad for number in kept.values())


def test_of_several_alignments_the_names_say_which():
    _, sf, _, images = small_step("blocks.1", "blocks.3")
    sf(images, diagnose=True)
    assert {"blocks_1/cka", "blocks_3/cka", "blocks_3/cosine_view_1"} <= sf.diagnostics.keys()
    assert sf.diagnostics["blocks_1/cka"] != sf.diagnostics["blocks_3/cka"]


def test_parallel_losses_have_a_gradient_cosine_of_one_opposite_ones_minus_one():
    _, sf, action, images = small_step("blocks.1", "blocks.3")
    align = sf(images)
    assert sf.pull(align, 3 * align).cosine.item() == pytest.approx(1, abs=1e-5)
    assert sf.pull(align, -align).cosine.item() == pytest.approx(-1, abs=1e-5)
    cosine = sf.pull(action, align).cosine.item()
    assert -1 < cosine < 1
    assert sf.pull(align, action).cosine.item() == pytest.approx(cosine, abs=1e-6)
    (action + align).backward()


def test_the_gradient_cosine_is_that_at_the_visual_tokens():
    _, sf, action, images = small_step("blocks.3")
    align, stream = sf(images), sf.tap.streams[0]
    g, h = (torch.autograd.grad(loss, stream, retain_graph=True)[0] for loss in (action, align))
    assert (g[:, :3] != 0).any(), "the action loss reaches words, too"
    visual = [sf.tap.visual_of(gradient).flatten() for gradient in (g, h)]
    expected = F.cosine_similarity(*visual, dim=0)
    assert sf.pull(action, align).cosine.item() == pytest.approx(expected.item(), abs=1e-6)


def test_gradients_of_nothing_have_no_cosine():
    _, sf, action, images = small_step("blocks.3")
    align = sf(images)
    assert sf.pull(action, torch.ones((), requires_grad=True) * 2).cosine.isnan()
    assert sf.pull(action, 0 * align).cosine.isnan()
    assert sf.pull(action, 0 * align).ratio == 0


def test_under_ddp_gradients_are_the_same_with_and_without():
    """The second backward, down to the tap, must not count as the one that DDP waits for."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    class Both(nn.Module):
        def __init__(self, vla: TinyVLA, sf: SpatialForcing):
            super().__init__()
            self.vla, self.sf = vla, sf

        def forward(self, images: Tensor, words: Tensor, state: Tensor, diagnose: bool) -> Tensor:
            with self.sf.watch():
                action = self.vla(images, words, state).square().mean()
            align = self.sf(images, diagnose=diagnose)
            if diagnose:
                self.sf.pull(action, align)
            return action + align

    vla, sf, _, images = small_step("blocks.3")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model, found = DistributedDataParallel(Both(vla, sf), find_unused_parameters=True), {}
        for diagnose in (False, True, True):
            model.zero_grad()
            model(images, torch.ones(3, 3, dtype=torch.long), torch.ones(3, 4), diagnose).backward()
            found[diagnose] = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    finally:
        dist.destroy_process_group()
    assert len(found[True]) == len(found[False]) > 20
    assert all(torch.equal(a, b) for a, b in zip(found[True], found[False], strict=True))
