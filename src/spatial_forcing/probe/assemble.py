"""Assembles the rows of a probe report from every policy's numbers: metrics, intervals, differences.

Shapes: K metrics or positions, n episodes, R resamples.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from spatial_forcing.bootstrap import pooled_resamples
from spatial_forcing.probe.quality import Tallies, interval, mean_of
from spatial_forcing.probe.records import MEAN, SHUFFLED, UNTRAINED, SourceRow
from spatial_forcing.probe.run import PolicyNumbers, SourceNumbers
from spatial_forcing.results import Difference

Head = Literal["linear", "dpt"]


def rows_of(
    numbers: Mapping[str, PolicyNumbers],
    positions: Sequence[str],
    aligned: Mapping[str, str],
) -> list[SourceRow]:
    """Report rows, one for every source, site and head, policies first.

    Args:
        numbers: by policy, in order.
        positions: names of the positions that were read.
        aligned: the recommended site of each policy, at which shuffled tokens were read.
    """
    rows: list[SourceRow] = []
    means: dict[tuple[Any, ...], Tallies | None] = {}
    first = next(iter(numbers))
    for name, of in numbers.items():
        if MEAN in of.references:
            means[of.grid] = of.references[MEAN].linear
        sources: list[tuple[dict[str, Any], SourceNumbers]] = [
            ({"source": name, "site": site, "reference": name == UNTRAINED}, one)
            for site, one in of.sites.items()
        ]
        sources += [
            ({"source": ref, "site": aligned[name] if ref == SHUFFLED else None, "reference": True}, one)
            for ref, one in of.references.items()
        ]
        for said, one in sources:
            # The cells of another grid are other places, even where there are as many.
            like_first = name != first and of.grid == numbers[first].grid
            base = numbers[first].sites.get(str(said["site"])) if like_first else None
            against = {MEAN: means.get(of.grid)} if said["source"] != MEAN else {}
            for head in ("linear", "dpt"):
                tallies = _tallies(one, head)
                if tallies is None:
                    continue
                others = dict(against)
                if base is not None and said["source"] == name:
                    others[first] = _tallies(base, head)
                rows.append(_row(said, head, one, tallies, others, positions))
    return sorted(rows, key=lambda row: row.reference)  # stable: the policies first


def _tallies(of: SourceNumbers, head: str) -> Tallies | None:
    if head == "linear":
        return of.linear
    return mean_of(of.dpt) if of.dpt else None


def _row(
    said: Mapping[str, Any],
    head: Head,
    of: SourceNumbers,
    tallies: Tallies,
    others: Mapping[str, Tallies | None],
    positions: Sequence[str],
) -> SourceRow:
    resampled = tallies.resampled
    spans = {name: interval(values) for name, values in (resampled or {}).items()}
    points, points_spans = _points(of, positions) if head == "linear" else (None, None)
    return SourceRow(
        **said,
        head=head,
        metrics={name: value for name, value in tallies.values.items() if np.isfinite(value)},
        intervals={name: span for name, span in spans.items() if span is not None} or None,
        by_seed=[one.values["absrel"] for one in of.dpt] if head == "dpt" else None,
        cells=int(tallies.cells_n.sum()),
        ridge=of.ridge if head == "linear" and said["source"] != MEAN else None,
        differences={
            name: difference(tallies, other)
            for name, other in others.items()
            if other is not None and tallies.comparable(other)
        }
        or None,
        points_cm=points,
        points_intervals=points_spans,
    )


def difference(of: Tallies, other: Tallies) -> Difference:
    """Difference in AbsRel of two sources, with its paired interval."""
    value = of.values["absrel"] - other.values["absrel"]
    mine, theirs = of.resampled, other.resampled
    if mine is None or theirs is None:
        return Difference(absrel=value)
    span = interval(mine["absrel"] - theirs["absrel"])
    assert span is not None
    return Difference(absrel=value, low=span[0], high=span[1])


def _points(
    of: SourceNumbers, positions: Sequence[str]
) -> tuple[dict[str, float] | None, dict[str, list[float]] | None]:
    if of.points_nK is None:
        return None, None
    mean_K = of.points_nK.mean(0)
    found = dict(zip(positions, mean_K.tolist(), strict=True))
    resampled_RK = pooled_resamples(of.points_nK, np.ones(len(of.points_nK)))
    if resampled_RK is None:
        return found, None
    spans = {name: interval(resampled_RK[:, k]) for k, name in enumerate(positions)}
    return found, {name: span for name, span in spans.items() if span is not None}
