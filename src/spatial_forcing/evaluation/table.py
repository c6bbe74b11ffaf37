"""Markdown of an evaluation: success by task, paired tests, findings, provenance."""

from spatial_forcing.evaluation.results import EvalResults, Pairing
from spatial_forcing.report.markdown import made_on, table
from spatial_forcing.report.measures import phases
from spatial_forcing.report.wording import corrected_text, rate_text


def markdown(results: EvalResults) -> str:
    """Renders the results of an evaluation."""
    parts = [_rates(results), _pairings(results.pairings)]
    said = [f"{found.kind}: {found.text}" for found in results.findings]
    said += [f"warning: {text}" for text in results.warnings]
    parts.append("\n".join(f"- {line}" for line in said))
    parts.append(_made_with(results))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rates(results: EvalResults) -> str:
    """Table of success rates: a row per task and one for all, a column per policy."""
    of = results.policies
    head = ["success (Wilson 95 %)", *of]
    rows = [[task, *(rate_text(one.rate(task), "") for one in of.values())] for task in results.tasks]
    if len(rows) > 1:
        rows.append(["all", *(rate_text(one.rate(), "") for one in of.values())])
    by_policy = {name: phases({0: one.episodes}) for name, one in of.items()}
    for phase in dict.fromkeys(phase for rates in by_policy.values() for phase in rates):
        rows.append([phase, *(rate_text(rates.get(phase), "") for rates in by_policy.values())])
    distances = [
        [e.final_distance for e in one.episodes if e.final_distance is not None] for one in of.values()
    ]
    if all(distances):
        rows.append(["mean final distance", *(f"{100 * sum(one) / len(one):.1f} cm" for one in distances)])
    return table(head, rows)


def _pairings(pairings: list[Pairing]) -> str:
    if not pairings:
        return ""
    head = ["policy", "against", "success, points", "only it / only the other", "McNemar", "would show"]
    rows = [
        [
            one.b,
            one.a,
            f"{100 * one.difference:+.1f}",
            f"{one.only_b} / {one.only_a}",
            corrected_text(one.p_value, one.p_holm),
            "no difference" if one.detectable is None else f"{100 * one.detectable:.0f} points",
        ]
        for one in pairings
    ]
    return table(head, rows)


def _made_with(results: EvalResults) -> str:
    count = results.episodes
    episodes = (
        f"{count} episode{'s' * (count > 1)} per task, seeds {results.seed} to {results.seed + count - 1}"
    )
    return "Made with: " + "; ".join([f"`{results.command}`", episodes, *made_on(results)]) + "."
