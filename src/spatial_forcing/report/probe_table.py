"""Console table of the depth probe in a comparison."""

from rich.table import Table

from spatial_forcing.report.summary import compared_with
from spatial_forcing.report.wording import difference_text, with_interval
from spatial_forcing.results import Probe


def probe_table(probe: Probe) -> Table:
    """A row per source, with intervals and paired differences."""
    versus = compared_with(probe)
    table = Table(
        *("tokens of", "AbsRel", "RMSE (m)", "delta < 1.25"),
        *(f"AbsRel less that of {name}" for name in versus),
        title="Depth read linearly from frozen tokens",
        caption=f"in brackets: 95 % intervals over {probe.test_episodes} held-out episodes; "
        "differences below 0 are gains",
    )
    for row in probe.rows:
        against = [difference_text((row.differences or {}).get(name)) for name in versus]
        table.add_row(
            row.name, with_interval(row, "absrel"), f"{row.rmse_m:.3f}", f"{row.delta1:.3f}", *against
        )
    return table
