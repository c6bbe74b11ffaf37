"""Policies whose visual tokens stand where the prompt has them, at small size: which tokens are tapped.

Shapes: B batch, V views, n tokens of a view, N of all views, L sequence.
"""

from dataclasses import replace

import pytest
import torch
from raw_batches import GROOT_CROP, PLAIN, raw_batch
from small_policies import CAMERAS, LEFT, PROMPTED, RIGHT, SMALL, small_batch, small_policy
from small_prompted import prompted
from torch import Tensor, nn

from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout, compose
from spatial_forcing.hosts import host_of
from spatial_forcing.hosts.small import WORDS
from spatial_forcing.patches.crops import crop_affine
from spatial_forcing.probe.tokens import tapped_tokens
from spatial_forcing.tap import Located, Tap, TapError


def stream_and_places(policy, batch: dict) -> tuple[Tensor, Located]:
    """The stream that enters the first block, with fixed noise, and where its visual tokens are."""
    host = host_of(policy)
    seen: list[Tensor] = []
    reader = host.blocks[0].get_submodule(host.entry)
    handle = reader.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    tap = Tap(host, 1)
    torch.manual_seed(0)
    with torch.no_grad(), tap.watch():
        policy.eval()(batch)
    located = tap.located
    assert located is not None
    tap.detach()
    handle.remove()
    return seen[0], located


def keep_in_place(policy) -> None:
    """Little attention, so that with random weights too a token changes most at its own place."""
    for name, module in policy.named_modules():
        if isinstance(module, nn.Linear) and name.endswith(("o_proj", "attn.proj", "projection_layer")):
            module.weight.data *= 0.01


def centres(kind: str, located: Located) -> list[tuple[int, int]]:
    """The pixel of the data set's image at the centre of each cell."""
    layout = located.layout
    affine_23 = layout.affine_23(*SMALL)
    if kind == "groot":
        affine_23 = compose(crop_affine(SMALL, keeps_aspect=False, **GROOT_CROP, **PLAIN), affine_23)
    found = []
    for cell in range(layout.rows * layout.cols):
        row, col = divmod(cell, layout.cols)
        at = torch.tensor([(col + 0.5) / layout.cols, (row + 0.5) / layout.rows, 1.0])
        x, y = (affine_23 * at).sum(-1).tolist()
        found.append((int(y * SMALL[0]), int(x * SMALL[1])))
    return found


@pytest.mark.parametrize("view", [0, 1])
@pytest.mark.parametrize("kind", PROMPTED)
def test_a_change_in_a_image_shows_in_the_token_that_covers_it(folder, kind, view):
    policy = small_policy(kind, folder)
    keep_in_place(policy)
    _, located = stream_and_places(policy, small_batch(policy, 1))
    pixels = centres(kind, located)
    # Every sample has another text: GR00T pads left, so that the same token is somewhere else.
    tasks = [" ".join(WORDS[: 1 + i % 5]) for i in range(len(pixels))]
    changes = []
    for seed in range(3):  # random images, to average out what they look like
        one = raw_batch(1, seed)
        raw = {key: value.repeat(len(pixels), *[1] * (value.ndim - 1)) for key, value in one.items()}
        before, places = stream_and_places(policy, prompted(policy.config, raw, tasks))
        changed = raw[CAMERAS[view]].clone()
        for sample, (y, x) in enumerate(pixels):
            box = changed[sample, :, max(0, y - 3) : y + 3, max(0, x - 3) : x + 3]
            box += 1 - 2 * box
        raw[CAMERAS[view]] = changed
        after, same = stream_and_places(policy, prompted(policy.config, raw, tasks))
        assert torch.equal(places.token_indices_BN, same.token_indices_BN)
        changes.append((after - before).norm(dim=-1))
    change_BL = torch.stack(changes).sum(0)
    assert (len({tuple(row) for row in places.token_indices_BN.tolist()}) > 1) == (kind == "groot")
    change_BVn = change_BL.gather(1, places.token_indices_BN).unflatten(1, (places.layout.views, -1))
    assert change_BVn[:, view].argmax(-1).tolist() == list(range(len(pixels)))
    assert (change_BVn[:, 1 - view] == 0).all(), "a token of the other view changed"
    elsewhere = torch.ones_like(change_BL, dtype=torch.bool).scatter(1, places.token_indices_BN, False)
    assert (change_BL[elsewhere] == 0).all(), "text, state or actions changed"


@pytest.mark.parametrize("kind", PROMPTED)
def test_the_tap_reads_what_transformers_calls_the_hidden_state(folder, kind):
    policy = small_policy(kind, folder).eval()
    batch = small_batch(policy, tasks=["move", "move the hand to ball", "the puck"])
    host = host_of(policy)
    tap, states, prompts = Tap(host, 3), [], []
    handles = [
        host.blocks[2].register_forward_hook(lambda module, args, output: states.append(output)),
        host.prompt.register_forward_pre_hook(
            lambda module, args, kwargs: prompts.append(kwargs["input_ids"]), with_kwargs=True
        ),
    ]
    with torch.no_grad(), tap.watch():
        policy(batch)
    for handle in handles:
        handle.remove()
    image_BL = prompts[0] == host.prompt.config.image_token_id
    assert torch.equal(tap.visual_BND().flatten(0, 1), states[0][image_BL])


@pytest.mark.parametrize("kind", PROMPTED)
def test_the_probe_reads_the_tokens_of_a_rollout(folder, kind, request):
    if kind == "groot":
        request.getfixturevalue("tracked")
    policy = small_policy(kind, folder)
    batches = [small_batch(policy, 2, seed=seed) for seed in (1, 2)]
    rows_cols = {"groot": (4, 4), "eo1": (2, 3), "evo1": (3, 3)}[kind]
    tokens_FVHWC = tapped_tokens(policy, batches).tokens_FVHWC
    assert tokens_FVHWC.shape == (4, 2, *rows_cols, 32)
    assert not torch.equal(tokens_FVHWC[0], tokens_FVHWC[2])


@pytest.mark.parametrize("kind", PROMPTED)
def test_a_copy_of_the_policy_leaves_the_last_prompt_behind(folder, kind):
    policy = small_policy(kind, folder, forcing={})
    policy(small_batch(policy))
    tap = policy.forcing.tap
    assert tap.located is not None
    assert tap.__getstate__()["located"] is None
    policy.forcing.detach()
    assert tap.located is None


def located_by(policy, ids_BL: Tensor, grid: list[list[int]]) -> Located:
    return host_of(policy).locate({"input_ids": ids_BL, "image_grid_thw": torch.tensor(grid)})


@pytest.mark.parametrize("kind", ["groot", "eo1"])
def test_prompts_that_do_not_fit_their_images_are_errors(folder, kind):
    policy = small_policy(kind, folder)
    token = host_of(policy).prompt.config.image_token_id
    ids_BL = torch.full((2, 9), token)
    ids_BL[:, -1] = 0
    assert located_by(policy, ids_BL, [[1, 4, 4]] * 4).layout.tokens == 8
    with pytest.raises(SpatialForcingError, match=r"different grids of patches \(4 x 2, 4 x 4\).*one size"):
        located_by(policy, ids_BL, [[1, 4, 4], [1, 4, 2]])
    with pytest.raises(SpatialForcingError, match="3 images for 2 samples"):
        located_by(policy, ids_BL, [[1, 4, 4]] * 3)
    ids_BL[0, 5:] = 0
    with pytest.raises(TapError, match=r"5 to 8 image tokens, expected 8 = 2 views x 2 x 2.*cut off"):
        located_by(policy, ids_BL, [[1, 4, 4]] * 4)


def test_what_the_caller_says_of_the_tokens_goes_before_the_prompt(folder):
    policy = small_policy("eo1", folder)
    tap = Tap(host_of(policy, layout=Layout(1, 1, 2), visual=slice(3, 5)), 1)
    with tap.watch():
        policy(small_batch(policy))
    assert tap.layout == Layout(1, 1, 2)
    assert torch.equal(tap.visual_BND(), tap.hidden_BLD[:, 3:5])


def test_without_the_prompt_the_tap_says_so(folder):
    policy = small_policy("eo1", folder)
    tap = Tap(replace(host_of(policy), prompt=nn.Identity()), 1)
    with tap.watch():
        policy(small_batch(policy))
    with pytest.raises(TapError, match="did not see the prompt"):
        tap.visual_BND()


def test_cameras_of_different_sizes_have_no_common_grid(folder):
    policy = small_policy("eo1", folder, forcing={}, sizes={LEFT: (40, 60), RIGHT: (80, 30)})
    with pytest.raises(SpatialForcingError, match=r"different grids of patches.*Give the cameras"):
        policy(small_batch(policy))
