"""Diagnosis of the perturbation check: the token order that explains which tokens changed.

The record of a host names a token of the sequence for every cell of every view. Other arrangements name
others: the slice begins elsewhere, the grid is counted in another order, the views are exchanged. An
arrangement is worth as many probes as moved the token that it names most.

Shapes: P probes (a cell blanked in a sample), N visual tokens.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from spatial_forcing.grid import Layout
from spatial_forcing.site import Site

Verdict = Literal["right", "shifted", "order", "views", "still", "unclear"]

# The record is believed if it names the token that moved for at least this share of the probes. Chance
# gives one in the number of tokens; a vision encoder with random weights spreads a change to neighbours.
BELIEVED = 0.3
# One that contradicts the record has to explain so much, and so much more than the record does.
ACCUSES, CLEARLY = 0.5, 0.25


@dataclass(frozen=True)
class HostReport:
    """Result of the perturbation check: a verdict with its message and evidence.

    Attributes:
        verdict: ``"right"``: tokens move where the record says. ``"shifted"``: the visual tokens lie earlier
            or later in the sequence than ``Host.visual`` takes them. ``"order"``: the grid is transposed,
            mirrored or turned. ``"views"``: the views come in another order. ``"still"``: nothing moves.
            ``"unclear"``: no arrangement explains what moves.
        message: what was seen and what to change.
        probes: how many times a cell was blanked.
        declared: the share of them that moved the token of the record most.
        explained: the same for the arrangement that the verdict tells of.
    """

    verdict: Verdict
    message: str
    probes: int
    declared: float
    explained: float

    @property
    def ok(self) -> bool:
        return self.verdict == "right"

    def __str__(self) -> str:
        return self.message


class Cell(NamedTuple):
    """A cell of the visual token grid."""

    view: int
    row: int
    col: int


class Probes(NamedTuple):
    """Blanked cells and the tokens that moved, probe by probe.

    Attributes:
        cells: what was blanked.
        indices_PN: where the visual tokens are in the sequence of the probe's sample.
        moved: the index of the token that moved most, None if nothing did.
        layout: the grid of the record.
    """

    cells: list[Cell]
    indices_PN: list[list[int]]
    moved: list[int | None]
    layout: Layout

    def named(self, order: "_Order", slots: Sequence[int]) -> list[int]:
        """The token indices that should move if view v's tokens are in slot ``slots[v]``, in some order."""
        return [
            indices_N[order(cell._replace(view=slots[cell.view]), self.layout)]
            for cell, indices_N in zip(self.cells, self.indices_PN, strict=True)
        ]

    def shifts(self, named: list[int], view: int | None = None) -> int:
        """The most common offset, in tokens, between the tokens that moved and those named (of a view)."""
        beside = Counter(
            there - index
            for cell, index, there in zip(self.cells, named, self.moved, strict=True)
            if there is not None and view in (None, cell.view)
        )
        return beside.most_common(1)[0][0] if beside else 0


_Order = Callable[[Cell, Layout], int]


class _Explanation(NamedTuple):
    """An arrangement of the visual tokens that may explain what moved: its verdict, and its token indices."""

    verdict: Verdict
    says: list[str]
    indices: list[int]

    def hits(self, moved: list[int | None]) -> int:
        return sum(index == there for index, there in zip(self.indices, moved, strict=True))


def _in_view(number: Callable[[Cell, Layout], int]) -> _Order:
    """An order of the cells within their view, the views one after another."""
    return lambda cell, grid: cell.view * grid.rows * grid.cols + number(cell, grid)


def _mixed_up(cell: Cell, grid: Layout) -> int:
    row, col = (cell.row + 0.5) / grid.rows * grid.cols, (cell.col + 0.5) / grid.cols * grid.rows
    return int(row) * grid.rows + int(col)


_DECLARED = _in_view(lambda c, grid: c.row * grid.cols + c.col)
_SEES = "Show the teacher what the host sees, or tell sf(images, affine) how to get from one to the other"
_ORDERS: dict[str, _Order] = {
    "The grid is transposed: the tokens run column by column, or rows and columns of the image are "
    "exchanged. Let Host.visual put the tokens row by row": _in_view(
        lambda c, grid: c.col * grid.rows + c.row
    ),
    f"The host sees its images mirrored left to right. {_SEES} (spatial_forcing.grid.flip)": _in_view(
        lambda c, grid: c.row * grid.cols + grid.cols - 1 - c.col
    ),
    f"The host sees its images upside down. {_SEES} (spatial_forcing.grid)": _in_view(
        lambda c, grid: (grid.rows - 1 - c.row) * grid.cols + c.col
    ),
    f"The host sees its images turned by 180 degrees. {_SEES} (spatial_forcing.grid.rotation)": _in_view(
        lambda c, grid: (grid.rows - 1 - c.row) * grid.cols + grid.cols - 1 - c.col
    ),
    "The layout has rows for columns: exchange them": _in_view(_mixed_up),
    "The views are interleaved, cell by cell. Let Host.visual put them view by view": (
        lambda c, grid: (c.row * grid.cols + c.col) * grid.views + c.view
    ),
}


def judged(site: Site, seen: Probes) -> HostReport:
    """The report with the simplest arrangement that explains what moved, if one does."""
    moved, probes = seen.moved, len(seen.moved)
    declared, *others = _explanations(site, seen)
    known = declared.hits(moved)
    still = [view for view in sorted({c.view for c in seen.cells}) if _still(seen, view)]
    if still or moved.count(None) > probes / 2:
        return HostReport("still", _says_still(seen, still), probes, known / probes, known / probes)
    best = max(others, key=lambda other: other.hits(moved), default=declared)
    hits = best.hits(moved)
    if known >= BELIEVED * probes and hits - known < CLEARLY * probes:
        says = f"{known} of {probes} blanked cells move most the token that the record names."
        return HostReport("right", says, probes, known / probes, known / probes)
    if hits >= ACCUSES * probes and hits - known >= CLEARLY * probes:
        says = (
            f"{'. '.join(best.says)}. This explains {hits} of {probes} blanked cells, the record of "
            f"{site.host} explains {known}."
        )
        return HostReport(best.verdict, says, probes, known / probes, hits / probes)
    return HostReport("unclear", _says_unclear(site, seen, known), probes, known / probes, hits / probes)


def _explanations(site: Site, seen: Probes) -> list[_Explanation]:
    """Candidate arrangements: the record's own, then others, simple ones first."""
    views = seen.layout.views
    slots = list(range(views))
    declared = seen.named(_DECLARED, slots)
    simple, twofold = [_Explanation("right", [], declared)], []
    orders = {text: order for text, order in _ORDERS.items() if seen.named(order, slots) != declared}
    for text, order in [("", _DECLARED), *orders.items()]:
        says, named = [text] if text else [], seen.named(order, slots)
        found = twofold if text else simple
        if text:
            simple.append(_Explanation("order", says, named))
        if by := seen.shifts(named):
            indices = [index + by for index in named]
            found.append(
                _Explanation("order" if text else "shifted", [*says, _says_shift(site, by)], indices)
            )
        if (others := _slots(seen, order)) != slots:
            says_views = [*says, _says_views(others, seen)]
            found.append(_Explanation("order" if text else "views", says_views, seen.named(order, others)))
    by_view = [seen.shifts(declared, view) for view in slots]
    indices = [index + by_view[cell.view] for cell, index in zip(seen.cells, declared, strict=True)]
    says = [f"Of view {view + 1}: {_says_shift(site, by)}" for view, by in enumerate(by_view) if by]
    return [*simple, *twofold, _Explanation("shifted", says, indices)]


def _slots(seen: Probes, order: _Order) -> list[int]:
    """The slot of the sequence in which each view's tokens move; as declared if two share one."""
    views = range(seen.layout.views)
    hits = {view: Counter[int]() for view in views}
    for slot in views:
        named = seen.named(order, [slot] * len(views))
        for cell, index, there in zip(seen.cells, named, seen.moved, strict=True):
            hits[cell.view][slot] += index == there
    found = [max(views, key=lambda slot, view=view: (hits[view][slot], slot == view)) for view in views]
    return found if len(set(found)) == len(found) else list(views)


def _still(seen: Probes, view: int) -> bool:
    return all(there is None for cell, there in zip(seen.cells, seen.moved, strict=True) if cell.view == view)


# ---- saying it ---------------------------------------------------------------------------------------------


def _selector(site: Site) -> str:
    if site.in_vision:
        return "Host.vision"
    return "Host.visual" if site.locate is None else "Host.locate"


def _says_shift(site: Site, by: int) -> str:
    tokens = f"{abs(by)} token{'s' if abs(by) > 1 else ''}"
    stand, starts = ("later", "early") if by > 0 else ("earlier", "late")
    return (
        f"The visual tokens stand {tokens} {stand} in the sequence than {_selector(site)} takes them: it "
        f"starts {tokens} too {starts}"
    )


def _says_views(slots: list[int], seen: Probes) -> str:
    shown = sorted({cell.view for cell in seen.cells})
    pairs = ", ".join(f"image {view + 1} in view {slots[view] + 1}" for view in shown)
    return f"The views come in another order, the host has {pairs}. Give images in the host's order"


def _says_still(seen: Probes, still: list[int]) -> str:
    shown = {cell.view for cell in seen.cells}
    some = f"view {', '.join(str(view + 1) for view in still)}"
    which = "the images" if len(still) in (0, len(shown)) else some
    return (
        f"Blanking cells of {which} changes nothing that enters the first block: the forward does not use "
        "the images that it is given, or masks them."
    )


def _says_unclear(site: Site, seen: Probes, known: int) -> str:
    often = Counter(there for there in seen.moved if there is not None).most_common(3)
    indices = ", ".join(f"{index} ({times} times)" for index, times in often)
    outside = sum(
        there not in indices_N for there, indices_N in zip(seen.moved, seen.indices_PN, strict=True)
    )
    return (
        f"Only {known} of {len(seen.moved)} blanked cells move most the token that the record of {site.host} "
        f"names, and no arrangement of the grid explains the others. {outside} moved no visual token most; "
        f"the token indices that moved most often are {indices}. Check Layout (rows, cols, fit, anchor) and "
        f"{_selector(site)}, or try other images and more probes."
    )
