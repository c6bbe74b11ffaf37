"""Writes the tables in README.md and docs/: of policies and teachers from their records, results from files.

    python scripts/tables.py            # writes what is stale
    python scripts/tables.py --check    # says what is stale, and changes nothing

A table stands between `<!-- table: <name> (scripts/tables.py) -->` and `<!-- end of table -->`. The one named
`result learning rates` is of docs/results/learning-rates.json, which scripts/keep_results.py wrote; with
` at step 300` behind it as of an earlier evaluation.
"""

import argparse
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

from spatial_forcing.files import read_json, size_text
from spatial_forcing.hosts import registry as hosts
from spatial_forcing.hosts.record import PolicyRecord
from spatial_forcing.probe.records import ProbeReport, RankedSite
from spatial_forcing.report.as_of import as_of
from spatial_forcing.report.comparisons import compare
from spatial_forcing.report.markdown import markdown
from spatial_forcing.report.records import Comparison
from spatial_forcing.report.summary import summarise
from spatial_forcing.report.wording import number, p_text, rate_text, spread_text
from spatial_forcing.results import Results
from spatial_forcing.structure.records import Score, TeacherScores
from spatial_forcing.teachers import registry as teachers

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "docs/hosts.md", "docs/results.md", "docs/teachers.md")
RESULTS = ROOT / "docs" / "results"
BUILT_IN = "tiny"
# Of the table of sites: the kept comparison and probes (one per training seed), the flag of an arm's site.
SWEEP, PROBES, SITE = "sweep", "probes/sites-*.json", "--policy.forcing.site="
# Of the table of scores: what `spatial-forcing teachers --dataset outputs/reach --out` wrote.
SCORES = "teachers/reach.json"
# Of the tables of points, by name: what recipes/points_in_tokens.py wrote, the comparison that it read, and
# the step of the success beside it.
POINTS = {
    "points": ("probes/points-in-tokens.json", "reach-surface", 300),
    "points starts": ("probes/points-in-tokens-starts.json", "reach-starts", 300),
    "points drawer": ("probes/points-in-tokens-drawer.json", "drawer-open-heavier", 900),
}
# Of the table over studies: an arm, when, against what, and the kept comparisons whose seeds are pooled.
# All of the defaults on reach from scratch, each row with those that have its arms and step. (The sweep chose
# the weight and is left out; points lie on surfaces since reach-surface.)
SHUFFLED = ("reach-speed", "reach-variants", "reach-teachers")
PLACE = (*SHUFFLED, "reach-points")
PLAIN = (*PLACE, "reach-surface")
SHUFFLED_POINTS = ("reach-surface", "reach-frames")
POINTS_OF = (*SHUFFLED_POINTS, "reach-teachers")
STUDIES = (
    ("forced", "half of the training", 300, "plain", PLAIN),
    ("forced", "half of the training", 300, "shuffled", SHUFFLED),
    ("forced", "half of the training", 300, "place", PLACE),
    ("forced", "half of the training", 300, "2d", ("reach-teachers",)),
    ("forced", "its end", 600, "plain", (*PLAIN, "data", "reach-data")),
    ("forced", "its end", 600, "shuffled", (*SHUFFLED, "data")),
    ("forced", "its end", 600, "place", (*PLACE, "data")),
    ("forced", "its end", 600, "2d", ("reach-teachers",)),
    ("forced", "pretrained, half of the training", 300, "plain", ("reach-pretrained",)),
    ("forced", "small SmolVLA, pretrained, half of the training", 300, "plain", ("reach-smolvla",)),
    ("points", "half of the training", 300, "plain", POINTS_OF),
    ("points", "half of the training", 300, "shuffled-points", SHUFFLED_POINTS),
    ("points", "its end", 600, "plain", (*POINTS_OF, "reach-data")),
    ("points", "its end", 600, "shuffled-points", (*SHUFFLED_POINTS, "reach-data")),
)
# Of the table of evidence: what was asked, the kept comparison, and the step (None: the last).
EVIDENCE = (
    ("reach, half of the training", "reach-speed", 300),
    ("reach, its end", "reach-speed", None),
    ("reach, half of the training, other seeds", "reach-points", 300),
    ("reach, its end, other seeds", "reach-points", None),
    ("reach, its end, other seeds", "data", None),
    ("reach, half of the training, other seeds", "reach-surface", 300),
    ("reach, its end, other seeds", "reach-surface", None),
    ("reach, half of the training, other seeds", "reach-variants", 300),
    ("reach, its end, other seeds", "reach-variants", None),
    ("reach, half of the training, other seeds, teachers trained further", "reach-teachers", 300),
    ("reach, its end, other seeds, teachers trained further", "reach-teachers", None),
    ("reach, its end, other seeds, teachers trained further", "reach-data", None),
    ("reach, pretrained on eight other tasks, half of the training", "reach-pretrained", 300),
    ("reach, pretrained, its end", "reach-pretrained", None),
    ("reach, a small pretrained SmolVLA, half of the training", "reach-smolvla", 300),
    ("reach, a small pretrained SmolVLA, its end", "reach-smolvla", None),
    ("drawer-open, the end of training", "drawer-open", None),
    ("drawer-open, its middle, other seeds, teachers trained further", "drawer-open-points", 450),
    ("drawer-open, its end, other seeds, teachers trained further", "drawer-open-points", None),
)
EVIDENCE_ARMS = {
    "plain": "no forcing",
    "forced": "forcing",
    "shuffled": "control: shuffled",
    "place": "control: place",
    "2d": "2D teacher",
}
# Of the table over studies: how an arm is called there.
OF_STUDIES = {
    "forced": "",
    "points": "recorded points, ",
    "shuffled-points": "points of another frame",
}
DIFFER = ("its successes", "the other's", "difference, points", "held-out action error")


class Asked(NamedTuple):
    """What was asked of a study before its runs: pairs, each an arm and the one that it is against.

    Attributes:
        steps: of the training; None is the last, the only one of references.
        shares: of the demonstrations; None is all.
    """

    study: str
    pairs: tuple[tuple[str, str], ...]
    steps: tuple[int | None, ...] = (None,)
    shares: tuple[float | None, ...] = (None,)


ASKED = {
    "asked of geometry": Asked("reach-geometry", (("oracle", "plain"),)),
    "asked of drawer geometry": Asked("drawer-open-geometry", (("oracle", "plain"),)),
    "asked of heavier": Asked(
        "drawer-open-heavier",
        (("points-2", "plain"), ("points-8", "plain"), ("points-2", "shuffled-points-2")),
        steps=(900, 450),
    ),
    "asked of data": Asked(
        "reach-data",
        (
            ("forced", "plain"),
            ("points", "plain"),
            ("points", "forced"),
            ("points", "shuffled-points"),
        ),
        shares=(0.5, 0.25, 1.0),
    ),
    "asked of teachers": Asked(
        "reach-teachers",
        (
            ("forced", "plain"),
            ("forced", "shuffled"),
            ("forced", "place"),
            ("forced", "2d"),
            ("2d", "plain"),
            ("robot", "forced"),
            ("points", "plain"),
            ("camera-points", "points"),
            ("predicted", "points"),
            ("rocket", "plain"),
            ("rocket", "shuffled-rocket"),
        ),
        steps=(300, 600),
    ),
    "asked of frames": Asked(
        "reach-frames",
        (
            ("points", "camera-points"),
            ("points", "plain"),
            ("points", "shuffled-points"),
            ("camera-points", "plain"),
            ("camera-points", "shuffled-camera-points"),
        ),
        steps=(300, 600),
    ),
    "asked of drawer": Asked(
        "drawer-open-points",
        (
            ("points", "plain"),
            ("points", "shuffled-points"),
            ("forced", "plain"),
            ("added", "plain"),
            ("beside", "plain"),
            ("forced", "2d"),
        ),
        steps=(900, 450),
    ),
}
BLOCK = re.compile(
    r"(<!-- table: (?P<name>[a-z0-9 ]+) \(scripts/tables\.py\) -->\n).*?(<!-- end of table -->)", re.DOTALL
)


def host_table() -> str:
    """Policies that share a page and say the same of themselves share a row."""
    rows: dict[tuple[str, ...], list[str]] = {}
    for record in _hosts():
        said = (record.tap, record.tokens, record.trains, _page(record))
        rows.setdefault(said, []).append(f"`sf_{record.type}`")
    head = ("type", "tap (default)", "visual tokens", "what must train", "page")
    return _table(head, [(", ".join(types), *said) for said, types in rows.items()])


def type_list() -> str:
    """The policy types with forcing, but the built-in one."""
    return ", ".join(f"`sf_{record.type}`" for record in _hosts() if record.type != BUILT_IN) + ".\n"


def teacher_table() -> str:
    """Teachers first, then what is there to compare with."""
    records = sorted(teachers.RECORDS.own().values(), key=lambda record: (record.control, record.name))
    rows = [(f"`{record.name}`", record.note.rstrip("."), record.licence) for record in records]
    return _table(("name", "what", "licence"), rows)


def site_table() -> str:
    """The sites as the probe ranks them in policies without forcing, beside what forcing at each gave."""
    sweep = Results.read(RESULTS / f"{SWEEP}.json")
    arms = summarise(sweep).arms
    probes = [ProbeReport.read(path) for path in sorted(RESULTS.glob(PROBES))]
    recommended = probes[0].policies[0].aligned_site
    flags = ((name, flag) for name, arm in sweep.arms.items() for flag in arm.differs)
    named = {flag.removeprefix(SITE): name for name, flag in flags if flag.startswith(SITE)}
    rows = []
    for site, arm in sorted({recommended: "forced", **named}.items()):
        found = [(i, one) for probe in probes for i, one in enumerate(_ranked(probe), 1) if one.site == site]
        error, by_seed = arms[arm].heldout_error, arms[arm].error_by_seed.values()
        rows.append(
            (
                f"{site} (recommended)" if site == recommended else site,
                ", ".join(f"{one.absrel:.4f}" for _, one in found),
                ", ".join(str(rank) for rank, _ in found),
                ", ".join(f"{one.best or 0:.0%}" for _, one in found),
                f"{number(error)} ({', '.join(map(number, by_seed))})",
                rate_text(arms[arm].success, ""),
            )
        )
    head = ("site", "AbsRel, plain policy", "rank", "lowest in", "error when forced there", "success")
    return _table(head, rows)


def score_table() -> str:
    """Depth, structure and cost of the teachers that could be run here, the lowest AbsRel first."""
    found = TeacherScores.read(RESULTS / SCORES)
    depth = found.depth
    assert depth is not None
    assert depth.mean is not None
    kept = sorted(found.scores, key=lambda one: (one.absrel and one.absrel.value) or 0)
    rows = [
        (
            f"`{one.teacher}`{' (control)' if one.control else ''}",
            _score(one.absrel),
            _score(one.local_distant),
            _score(one.content),
            f"{one.seconds / found.frames:.3f}",
            "–" if one.stored_bytes is None else size_text(one.stored_bytes),
        )
        for one in kept
    ]
    rows.append(("mean depth of each position", _score(depth.mean), *4 * ("–",)))
    head = ("teacher", "AbsRel", "near - far", "content", "s a frame", "stored at 0.99")
    where = f"{found.hardware['cores']} cores of {found.hardware['cpu']}"
    return (
        f"{_table(head, rows)}\n{found.frames} frames of {found.episodes} episodes, depth judged on "
        f"{depth.test_episodes} of them. Made with: `{found.command}`; commit {found.commit}; {where}.\n"
    )


def points_table(table: str) -> str:
    """How well points are read from tokens, by policy, beside the success of the arms."""
    file, comparison, step = POINTS[table]
    found = read_json(RESULTS / file)
    arms = summarise(as_of(Results.read(RESULTS / f"{comparison}.json"), step)).arms
    errors: dict[str, list[dict[str, float]]] = {}
    for name, row in found["rows"].items():
        errors.setdefault(re.sub(r"[ -]\d+$", "", name), []).append(row)
    rows = []
    for name, of in sorted(errors.items(), key=lambda item: fmean(row["all"] for row in item[1])):
        all_cm, goal_cm = (fmean(row[which] for row in of) for which in ("all", "goal"))
        by_seed = f" ({', '.join(f'{row["all"]:.1f}' for row in of)})" if len(of) > 1 else ""
        success = rate_text(arms[name].success, "") if name in arms else "–"
        rows.append((name, f"{all_cm:.1f}{by_seed}", f"{goal_cm:.1f}", success))
    head = (
        "tokens of",
        "points, cm (by seed)",
        "of the goal, cm",
        f"success of the arm at {step} steps",
    )
    where = f"{found['hardware']['cores']} cores of {found['hardware']['cpu']}"
    made = f"Made with: `python recipes/{found['command']}`; commit {found['commit']}; {where}."
    return f"{_table(head, rows)}\n{made}\n"


def evidence_table() -> str:
    """Successes of the main studies, of the policy with and without forcing and of both controls."""
    rows = []
    for asked, name, step in EVIDENCE:
        results = Results.read(RESULTS / f"{name}.json")
        arms = summarise(results if step is None else as_of(results, step)).arms
        seeds = len({run.seed for run in results.runs})
        success = (rate_text(arms[arm].success, "") if arm in arms else "–" for arm in EVIDENCE_ARMS)
        rows.append((asked, f"[{name}](docs/results/{name}.json)", str(seeds), *success))
    head = ("task and length, built-in policy where none is named", "study", "seeds", *EVIDENCE_ARMS.values())
    return _table(head, rows)


def studies_table() -> str:
    """Forcing against each other arm, over the seeds of several studies of the same setting."""
    rows = []
    for arm, when, step, a, names in STUDIES:
        first, *others = (as_of(Results.read(RESULTS / f"{name}.json"), step) for name in names)
        runs = [*first.runs, *(run for other in others for run in other.runs)]
        found = compare(first.model_copy(update={"runs": runs}), a, arm)
        said = f"{OF_STUDIES[arm]}{when}, against {OF_STUDIES.get(a) or EVIDENCE_ARMS[a]}"
        rows.append((said, str(len(found.seeds)), *_differ(found)))
    return _table(("forcing", "seeds", *DIFFER), rows)


def asked_table(table: str) -> str:
    """What was asked of a study before its runs, at each step, or with each share of the demonstrations."""
    study, pairs, steps, shares = ASKED[table]
    kept = Results.read(RESULTS / f"{study}.json")
    rows = []
    for step, share in product(steps, shares):
        results = kept if step is None else as_of(kept, step)
        runs = [run for run in results.runs if share in (None, run.fraction)]
        for arm, other in pairs:
            found = compare(results.model_copy(update={"runs": runs}), other, arm)
            where = str(found.step) if share is None else f"{100 * share:.0f} %"
            rows.append((where, f"{arm} against {other}", *_differ(found)))
    return _table(("step" if shares == (None,) else "demonstrations", "asked", *DIFFER), rows)


def _differ(found: Comparison) -> tuple[str, str, str, str]:
    """How two arms differ, under the heads ``DIFFER``."""
    assert found.errors is not None
    return (
        rate_text(found.success_b, ""),
        rate_text(found.success_a, ""),
        f"{spread_text(found.difference, 1)}, {p_text(found.p_value)}",
        f"{spread_text(found.errors.difference)}, {p_text(found.errors.p_value)}",
    )


def _score(score: Score | None) -> str:
    if score is None or score.value is None:
        return "–"
    span = "" if score.low is None or score.high is None else f" ({score.low:.3f} to {score.high:.3f})"
    return f"{score.value:.3f}{span}"


def _ranked(probe: ProbeReport) -> list[RankedSite]:
    return probe.suggestion.ranked if probe.suggestion else []


TABLES: dict[str, Callable[[], str]] = {
    "hosts": host_table,
    "types": type_list,
    "teachers": teacher_table,
    "sites": site_table,
    "scores": score_table,
    "evidence": evidence_table,
    "over studies": studies_table,
    **{table: partial(asked_table, table) for table in ASKED},
    **{table: partial(points_table, table) for table in POINTS},
}
RESULT, AT_STEP = "result ", " at step "


def result_tables(name: str) -> str:
    """What a comparison found, at its end or at an earlier step."""
    name, _, step = name.partition(AT_STEP)
    results = Results.read(RESULTS / f"{name.replace(' ', '-')}.json")
    return markdown(summarise(as_of(results, int(step)) if step else results))


@cache  # some stand on two pages
def content(name: str) -> str:
    """What stands in a table by its name."""
    return result_tables(name.removeprefix(RESULT)) if name.startswith(RESULT) else TABLES[name]()


def _hosts() -> list[PolicyRecord]:
    records = hosts.RECORDS.own().values()
    return sorted(records, key=lambda record: (record.type == BUILT_IN, record.type))


def _page(record: PolicyRecord) -> str:
    """A link to the page, named by its first heading."""
    if not record.page:
        return "the built-in VLA of the demo" if record.type == BUILT_IN else ""
    title = (ROOT / "docs" / record.page).read_text().splitlines()[0].removeprefix("# ")
    return f"[{title}]({record.page})"


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    lines.insert(1, "|" + "---|" * len(head))
    return "\n".join(lines) + "\n"


def with_tables(text: str) -> str:
    """A page with every table in it as the records say."""
    return BLOCK.sub(lambda found: found[1] + content(found["name"]) + found[3], text)


def stale() -> dict[Path, str]:
    """Pages whose tables are not what the records say, and what they should be."""
    pages = {ROOT / page: (ROOT / page).read_text() for page in PAGES}
    return {path: with_tables(text) for path, text in pages.items() if with_tables(text) != text}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--check", action="store_true", help="say what is stale, and change nothing")
    check = parser.parse_args().check
    pages = stale()
    for path, text in pages.items():
        print(f"{path.relative_to(ROOT)} {'is stale: run python scripts/tables.py' if check else 'written'}")
        if not check:
            path.write_text(text)
    sys.exit(bool(pages) and check)


if __name__ == "__main__":
    main()
