"""Ranking of a policy's sites by the depth in their tokens, with bootstrap ranks over episodes.

All sites of a policy are judged on the same cells of the same episodes, so that they are resampled together
(paired): what counts is how often a site is the best one, not whether intervals overlap.

Shapes: R resamples, S sites.
"""

from collections.abc import Mapping

import numpy as np

from spatial_forcing.probe.depth import ProbeError
from spatial_forcing.probe.quality import Tallies, interval
from spatial_forcing.probe.records import RankedSite, Suggestion

NEAR, SURE = 1.02, 0.95


def ranked_sites(policy: str, tallies: Mapping[str, Tallies], aligned_site: str) -> Suggestion:
    """Ranks the sites of a policy, the lowest AbsRel first.

    Args:
        policy: its name, for the verdict.
        tallies: of the linear head at each site.
        aligned_site: the host's recommendation, to compare with.

    Raises:
        ProbeError: fewer than two sites.
    """
    if len(tallies) < 2:
        raise ProbeError("A suggestion needs at least two sites to choose from: give --sites all.")
    first = next(iter(tallies.values()))
    comparable = {name: of for name, of in tallies.items() if of.comparable(first)}
    values = {name: of.values["absrel"] for name, of in comparable.items()}
    order = sorted(values, key=lambda name: values[name])
    drawn = [comparable[name].resampled for name in order]
    if any(of is None for of in drawn):
        ranked = [RankedSite(site=name, absrel=values[name]) for name in order]
        return Suggestion(
            policy=policy,
            ranked=ranked,
            verdict=f"{order[0]} is the lowest, in too few test episodes: not sure.",
        )
    absrel_RS = np.stack([of["absrel"] for of in drawn if of is not None], axis=1)
    lowest_R1 = absrel_RS.min(1, keepdims=True)
    best_S = (absrel_RS == lowest_R1).mean(0)
    near_S = (absrel_RS <= NEAR * lowest_R1).mean(0)
    rank_S = 1 + absrel_RS.argsort(1).argsort(1).mean(0)
    ranked = []
    for i, name in enumerate(order):
        low, high = interval(absrel_RS[:, i]) or (None, None)
        ranked.append(
            RankedSite(
                site=name,
                absrel=values[name],
                low=low,
                high=high,
                best=float(best_S[i]),
                near_best=float(near_S[i]),
                mean_rank=float(rank_S[i]),
            )
        )
    return Suggestion(policy=policy, ranked=ranked, verdict=_verdict(ranked, aligned_site))


def _verdict(ranked: list[RankedSite], aligned_site: str) -> str:
    """Verdict as text: which site, how sure, and what else is as good."""
    first = ranked[0]
    assert first.best is not None
    share = f"the lowest AbsRel in {first.best:.0%} of resamples of the test episodes"
    if first.best >= SURE:
        said = f"{first.site}: {share}, so it is the site with the most depth."
    else:
        rivals = [one.site for one in ranked[1:] if (one.best or 0) >= 0.05]
        also = f"; also possible: {', '.join(rivals)}" if rivals else ""
        said = f"{first.site}: {share}, which does not settle it{also}."
    if first.site == aligned_site:
        return f"{said} It is the one that the host's record recommends."
    known = next((one for one in ranked if one.site == aligned_site), None)
    if known is None:
        return said
    return (
        f"{said} The recommended {aligned_site} has AbsRel {known.absrel:.4f}, against {first.absrel:.4f}. "
        "Depth that is there already is not the same as success after alignment: measure it."
    )
