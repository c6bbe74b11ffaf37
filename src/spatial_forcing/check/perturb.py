"""Perturbation check of a host record: blank a patch of an image, and see which token changes.

A host record with a mistake in it (a slice of the right length that begins elsewhere, a grid counted column
by column, views in another order, a mirrored image) trains without an error and aligns every token with what
another part of the image looks like. Here a cell of the grid is blanked in the image, the host runs up to its
first block, and the token that moves most should be the one that ``Layout`` and ``Host.visual`` name. Over
some cells the tokens that did move tell what is wrong.

Shapes: B batch, V views, H W pixels, L sequence, N visual tokens, D width, P probes (a cell blanked in a
sample).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from spatial_forcing.check.arrangements import Cell, HostReport, Probes, judged
from spatial_forcing.errors import SpatialForcingError
from spatial_forcing.grid import Layout, compose
from spatial_forcing.site import Host, Site, TapError

Images = Tensor | Sequence[Tensor]

# A token has moved if it did by more than this share of its length: rounding moves it less.
MOVED = 1e-5


class Entered(NamedTuple):
    """The stream and visual tokens of a forward at the input of the first block.

    Attributes:
        stream: the input of the first block, (B, L, D) or (L, B, D) as the host has it.
        visual: the host's visual tokens of such a stream.
        layout: the grid that they make.
    """

    stream: Tensor
    visual: Callable[[Tensor], Tensor]
    layout: Layout


def check_host(
    host: Host,
    forward: Callable[[Any], Any],
    images: Images,
    *,
    affine_23: Tensor | None = None,
    site: str = "blocks.0",
    probes: int = 32,
    seed: int = 0,
) -> HostReport:
    """Checks a host record: blanks cells of the images and sees which tokens change before the first block.

        report = check_host(host, lambda images_BV3HW: vla(images_BV3HW, words, state), images_BV3HW)
        assert report.ok, report

    The forward runs without gradient and is stopped at the first block: what it costs is the vision encoder,
    for the batch as it is and once more for every B probes. Put the model in evaluation mode first, and run
    the check before ``torch.compile``. Use images of something: where they are of one colour, little moves.

    Args:
        host: the record to check.
        forward: images -> anything: any forward of the model that goes through the host's blocks. It gets
            images as ``images`` are, of the same batch and shape, in the same range.
        images: images_BV3HW, or a list of B3HW, one a view, whose sizes may differ; views in the host's
            order. Those beyond the list are not checked.
        affine_23: from the image that the layout speaks of to the one given here, in unit coordinates,
            where the forward crops or mirrors on purpose (see ``spatial_forcing.grid``); one for all views,
            or one each (V, 2, 3).
        site: where to look: before the first block, where nothing is mixed yet, or ``"vision.0"``.
        probes: how many cells to blank, spread over views and samples.
        seed: of the choice of cells, and of the random numbers of every forward.

    Raises:
        TapError: no such site, the forward does not reach it, or its tokens do not fit the layout.
        SpatialForcingError: the images do not fit the layout.
    """
    read = host.site(site)
    views = list(images.unbind(1)) if isinstance(images, Tensor) else list(images)
    if not views or any(view.ndim != 4 for view in views) or len({len(view) for view in views}) != 1:
        shapes = ", ".join(str(tuple(view.shape)) for view in views) or "none"
        raise SpatialForcingError(f"Expected images (B, 3, H, W) of every view, got: {shapes}.")

    def run(shown: list[Tensor]) -> Entered:
        given = torch.stack(shown, dim=1) if isinstance(images, Tensor) else shown
        return _enter(read, lambda: forward(given), seed)

    before = run(views)
    if len(views) > before.layout.views:
        raise SpatialForcingError(
            f"Got images of {len(views)} views, but {host.name} has tokens for {before.layout.views}."
        )
    token_indices_BN, stream_BLD = _visual_and_stream(before, len(views[0]))
    cells, moved = [], []
    for chosen in _rounds(before.layout, views, probes, seed):
        after = run(_blanked(views, chosen, before.layout, affine_23))
        _, changed_BLD = _visual_and_stream(after, len(views[0]))
        moved += _most_moved(stream_BLD, changed_BLD)[: len(chosen)]
        cells += chosen
    samples = [i % len(views[0]) for i in range(len(cells))]
    return judged(read, Probes(cells, token_indices_BN[samples].tolist(), moved, before.layout))


# ---- running the host --------------------------------------------------------------------------------------


class _Stop(BaseException):
    """Ends a forward at the first block; an ``except Exception`` in the host cannot catch it."""


def _enter(site: Site, run: Callable[[], Any], seed: int) -> Entered:
    """Runs a forward up to a site and returns the stream there, read where the tap would read it."""
    seen: list[Tensor] = []
    located: list[Any] = []

    def stop(module: nn.Module, args: tuple, kwargs: dict) -> None:
        seen.append((args[0] if args else next(iter(kwargs.values()))).detach())
        if len(seen) == site.calls:
            raise _Stop

    def locate(module: nn.Module, args: tuple, kwargs: dict) -> None:
        assert site.locate is not None
        located.append(site.locate(kwargs))

    handles = [site.reader.register_forward_pre_hook(stop, with_kwargs=True)]
    if site.prompt is not None:
        handles.append(site.prompt.register_forward_pre_hook(locate, with_kwargs=True))
    try:
        with _repeatable(seed):
            run()
    except _Stop:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) < site.calls or (site.prompt is not None and not located):
        what = "the module that Host.prompt names"
        if not seen:
            what = "its first block" if site.name == "blocks.0" else f"the site {site.label}"
        elif len(seen) < site.calls:
            what = f"the site {site.label} once for each of {site.calls} views, only {len(seen)} times"
        raise TapError(
            f"The forward never reached {what} of {site.host}: it uses other modules than those of the host "
            "record, or it is compiled (check it before torch.compile)."
        )
    if site.in_vision:  # its own tokens are all that there is
        visual_BND = torch.cat(
            [_fixed(site, stream, site.layout.tokens // site.calls) for stream in seen], dim=1
        )
        return Entered(visual_BND, lambda stream: stream, site.layout)
    if not located:
        return Entered(seen[0], lambda stream: _fixed(site, stream, site.layout.tokens), site.layout)
    indices_BN1 = located[0].token_indices_BN[..., None].to(seen[0].device)
    return Entered(
        seen[0],
        lambda stream_BLD: stream_BLD.gather(1, indices_BN1.expand(-1, -1, stream_BLD.shape[-1])),
        located[0].layout,
    )


def _fixed(site: Site, stream: Tensor, tokens: int) -> Tensor:
    assert site.visual is not None
    visual_BND, layout = site.visual(stream), site.layout
    if visual_BND.ndim != 3 or visual_BND.shape[1] != tokens:
        made_by = "Host.vision" if site.in_vision else "Host.visual"
        views = layout.views // site.calls
        raise TapError(
            f"{made_by} of {site.host} makes {tuple(visual_BND.shape)} of {tuple(stream.shape)}, expected "
            f"(batch, {tokens}, {site.width}) = (batch, {views} views x {layout.rows} x {layout.cols}, "
            f"width): check {site.record}."
        )
    return visual_BND


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Context without gradients or compiled graphs (they skip hooks), and with the same random numbers for
    every forward."""
    with torch.no_grad(), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
        torch.manual_seed(seed)
        yield


def _visual_and_stream(entered: Entered, batch: int) -> tuple[Tensor, Tensor]:
    """(token_indices_BN in the sequence of the visual tokens, the stream as (B, L, D)).

    ``Host.visual`` is applied to a stream of position numbers. Where it computes instead of picking, the
    visual tokens stand for the whole sequence.
    """
    stream = entered.stream
    first, second, width = stream.shape
    number = torch.arange(first * second, dtype=torch.float64, device=stream.device).view(first, second, 1)
    picked_BN = entered.visual(number.expand(-1, -1, width))[..., 0].round().long()
    row_BN, col_BN = picked_BN // second, picked_BN % second
    sample_B1 = torch.arange(batch, device=stream.device)[:, None]
    if len(picked_BN) == batch == first and (row_BN == sample_B1).all():
        return col_BN, stream
    if len(picked_BN) == batch == second and (col_BN == sample_B1).all():
        return row_BN, stream.transpose(0, 1)
    visual_BND = entered.visual(stream)
    return torch.arange(visual_BND.shape[1]).expand(len(visual_BND), -1), visual_BND


def _most_moved(before_BLD: Tensor, after_BLD: Tensor) -> list[int | None]:
    """The index of the token that moved most in each sample; None if none did."""
    before_BLD, after_BLD = before_BLD.float(), after_BLD.float()
    change_BL = (after_BLD - before_BLD).norm(dim=-1)
    most_B, index_B = change_BL.max(dim=1)
    length_B = before_BLD.norm(dim=-1).gather(1, index_B[:, None])[:, 0]
    there_B = most_B > MOVED * length_B
    return [index if there else None for index, there in zip(index_B.tolist(), there_B.tolist(), strict=True)]


# ---- blanking ----------------------------------------------------------------------------------------------


def _rounds(layout: Layout, views: list[Tensor], probes: int, seed: int) -> Iterator[list[Cell]]:
    """Random cells to blank, views in turn, at most one for every sample of a forward."""
    draw = torch.Generator().manual_seed(seed)
    shuffled = []
    for number, view in enumerate(views):
        inside = layout.valid_mask(*view.shape[-2:]).nonzero().tolist()
        order = torch.randperm(len(inside), generator=draw).tolist()
        shuffled.append([Cell(number, *inside[i]) for i in order])
    shuffled = [cells for cells in shuffled if cells]
    if not shuffled:
        raise SpatialForcingError(
            f"No cell of {layout.rows} x {layout.cols} has its centre in the images, all is padding: there "
            "is nothing to blank, and nothing to align."
        )
    turns: list[Cell] = []
    for turn in range(probes):
        cells = shuffled[turn % len(shuffled)]
        turns.append(cells[turn // len(shuffled) % len(cells)])
    batch = len(views[0])
    for start in range(0, probes, batch):
        yield turns[start : start + batch]


def _blanked(
    views: list[Tensor], chosen: list[Cell], layout: Layout, affine_23: Tensor | None
) -> list[Tensor]:
    """The images with one cell blanked in each of the first samples."""
    views = [view.clone() for view in views]
    for sample, cell in enumerate(chosen):
        image_3HW = views[cell.view][sample]
        rows, cols = _box(cell, layout, affine_23, *image_3HW.shape[-2:])
        low, high = image_3HW.amin(), image_3HW.amax()
        high = torch.where(high > low, high, low + 1)
        box = image_3HW[:, rows, cols]
        # Black or white, channel by channel, whichever is farther from what is there.
        dark_3 = box.float().mean((1, 2)) < (low + high) / 2
        box[:] = torch.where(dark_3, high, low).to(box)[:, None, None]
    return views


def _box(
    cell: Cell, layout: Layout, affine_23: Tensor | None, height: int, width: int
) -> tuple[slice, slice]:
    """Rows and columns of the pixels that a cell covers."""
    to_image_23 = layout.affine_23(height, width)
    if affine_23 is not None:
        own_23 = affine_23 if affine_23.ndim == 2 else affine_23[cell.view]
        to_image_23 = compose(own_23.to(to_image_23), to_image_23)
    corners_23 = torch.tensor(
        [
            [cell.col / layout.cols, cell.row / layout.rows, 1.0],
            [(cell.col + 1) / layout.cols, (cell.row + 1) / layout.rows, 1.0],
        ]
    )
    ends_22 = (corners_23 @ to_image_23.mT) * torch.tensor([width, height])
    (x0, y0), (x1, y1) = ends_22.amin(0).round().int().tolist(), ends_22.amax(0).round().int().tolist()

    def pixels(start: int, end: int, size: int) -> slice:
        start = min(max(start, 0), size - 1)
        return slice(start, min(max(end, start + 1), size))

    return pixels(y0, y1, height), pixels(x0, x1, width)
