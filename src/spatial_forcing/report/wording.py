"""Text formatting of numbers and names in the report."""

from collections.abc import Iterable
from math import isfinite

from spatial_forcing.report.records import Spread
from spatial_forcing.results import Difference, ProbeRow
from spatial_forcing.stats import Interval


def rate_text(rate: Interval | None, level: str = "95 % ") -> str:
    """Formats a success rate: 14/25 (95 % 37 to 73 %)."""
    if rate is None:
        return "not evaluated"
    return f"{rate.successes}/{rate.episodes} ({level}{100 * rate.low:.0f} to {100 * rate.high:.0f} %)"


def with_interval(row: ProbeRow, key: str) -> str:
    """Formats a metric of the depth probe: 0.119 (0.112 to 0.127)."""
    value, interval = getattr(row, key), (row.intervals or {}).get(key)
    if interval is None:
        return number(value)
    return f"{number(value)} ({number(interval[0])} to {number(interval[1])})"


def difference_text(found: Difference | None) -> str:
    """Formats a difference in AbsRel with its interval: -0.011 (-0.015 to -0.007)."""
    if found is None:
        return "–"
    if found.low is None or found.high is None:
        return signed(found.absrel)
    return f"{signed(found.absrel)} ({signed(found.low)} to {signed(found.high)})"


def spread_text(found: Spread | None, digits: int = 3, sign: bool = True) -> str:
    """Formats an estimate with its interval: -0.003 (-0.013 to +0.010)."""
    if found is None or found.value is None:
        return "–"
    form = f"{{:{'+' if sign else ''}.{digits}f}}"
    if found.low is None or found.high is None:
        return form.format(found.value)
    return f"{form.format(found.value)} ({form.format(found.low)} to {form.format(found.high)})"


def signed(value: float | None) -> str:
    if value is None or not isfinite(value):
        return "not measured"
    # The sign of what rounds to zero stays: it says whether an interval includes zero. (-0.0 has none.)
    return f"{value + 0.0:+.3f}"


def p_text(p: float | None) -> str:
    if p is None:
        return "not tested"
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def corrected_text(p: float | None, p_holm: float | None) -> str:
    """Formats a p-value, with the corrected one where it differs."""
    if p is None or p_holm is None or p_holm == p:
        return p_text(p)
    return f"{p_text(p)}, with Holm's correction {p_text(p_holm)}"


def number(value: float | None, digits: int = 3) -> str:
    return "not measured" if value is None or not isfinite(value) else f"{value:.{digits}f}"


def upper(name: str) -> str:
    """Capitalises a name at the start of a sentence."""
    return name[:1].upper() + name[1:]


def listed(names: Iterable[str], last: str = "and") -> str:
    """Joins names as in a sentence: a, b and c."""
    *others, final = names
    return f"{', '.join(others)} {last} {final}" if others else final
