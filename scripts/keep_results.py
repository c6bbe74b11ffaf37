"""Keeps results of a comparison or a probe: docs/results/<name>.json, from which docs/results.md is drawn.

    python scripts/keep_results.py outputs/sweep sweep --figures probe_sites forest_success
    python scripts/tables.py

What is kept of a comparison is results.json without images and videos, and with a few rows of each training
curve; of the report's figures those that are named, as docs/results/<name>-<figure>.svg. Of a probe it is
probe.json, as docs/results/probes/<name>.json.
"""

import argparse
from pathlib import Path

from spatial_forcing.probe.records import ProbeReport
from spatial_forcing.results import Results, RunResults

KEPT = Path(__file__).resolve().parents[1] / "docs" / "results"
# Rows that are kept of a training curve.
ROWS = 10


def kept(results: Results) -> Results:
    """The same results without what is large and only drawn."""
    probe = results.probe and results.probe.model_copy(update={"image": None})
    runs = [_thinned(run) for run in results.runs]
    return results.model_copy(update={"samples": None, "probe": probe, "runs": runs})


def _thinned(run: RunResults) -> RunResults:
    every = max(1, -(-len(run.curves) // ROWS))
    return run.model_copy(update={"videos": None, "curves": run.curves[every - 1 :: every]})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="of the comparison or the probe")
    parser.add_argument("name", help="under which it is kept")
    parser.add_argument("--figures", nargs="*", default=[], help="of the report, by the names of their files")
    options = parser.parse_args()
    probe = options.folder / "probe.json"
    path = (KEPT / "probes" if probe.is_file() else KEPT) / f"{options.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    if probe.is_file():
        ProbeReport.read(probe, "Probe again.").save(path)
    else:
        kept(Results.read(options.folder / "results.json")).save(path)
    print(path)
    for figure in options.figures:
        drawn = KEPT / f"{options.name}-{figure}.svg"
        drawn.write_bytes((options.folder / "figures" / f"{figure}.svg").read_bytes())
        print(drawn)


if __name__ == "__main__":
    main()
