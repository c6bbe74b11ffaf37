"""What every result file says of its making, and the spread of what was measured."""

import statistics
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spatial_forcing import provenance


def made_with(args: Any) -> dict[str, Any]:
    """Command, commit, versions, hardware and options; call it first, as the commit may change later."""
    options = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(args).items() if k != "out"}
    return provenance.made_with() | {"options": options}


def quartiles(values: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, median, high = statistics.quantiles(values, n=4)
    return {"median": round(median, 4), "low": round(low, 4), "high": round(high, 4)}
