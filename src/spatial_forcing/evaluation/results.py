"""Result files of an evaluation, written and read by the same record classes: ``eval.json``, batches."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.files import differences, write_text
from spatial_forcing.json_record import Record
from spatial_forcing.power import detectable_difference
from spatial_forcing.run_results import Episode
from spatial_forcing.stats import Interval, holm, mcnemar, wilson

try:
    from pydantic import Field
except ImportError as error:
    raise MissingDependencyError("pydantic", "report") from error

RESULTS = "eval.json"


class Batch(Record):
    """A batch of episodes of a policy on a task, as a file.

    Attributes:
        episodes: in the order of their seeds.
        seconds: wall time; of a process's first batch with making policy and simulator.
    """

    episodes: list[Episode]
    seconds: float

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.plain(), indent=1))


class Found(Record):
    """A guard's finding.

    Attributes:
        kind: "wrong" stops an evaluation, "odd" deserves a look.
        policy: whose.
        about: what was compared: cameras, orientation, state, gripper, ...
        expected, found, advice: as sentences.
    """

    kind: str
    policy: str
    about: str
    expected: str
    found: str
    advice: str

    @property
    def text(self) -> str:
        return f"{self.policy}, {self.about}: expected {self.expected}; found {self.found}. {self.advice}"


class PolicyResults(Record):
    """The episodes of a policy, task by task and by seed.

    Attributes:
        where: the folder or Hub name, as given.
        checkpoint: checksums of its files.
        episodes: in the order of the tasks.
        seconds: of all batches together.
        of: the evaluation it is from, if that is another (``--beside``).
    """

    where: str
    checkpoint: dict[str, str] = Field(default_factory=dict)
    episodes: list[Episode]
    seconds: float
    of: str | None = None

    def on(self, task: str | None = None) -> list[Episode]:
        """The episodes of a task; all if None."""
        return [one for one in self.episodes if task is None or one.task == task]

    def rate(self, task: str | None = None) -> Interval:
        """Success rate with Wilson's interval, on a task or over all."""
        of = self.on(task)
        return wilson(sum(one.success for one in of), len(of))


class Pairing(Record):
    """McNemar's exact test of a policy against the first one, on the same episodes.

    Attributes:
        a, b: the first policy, and the other.
        both, only_a, only_b, neither: episodes by who solved them.
        difference: success rate of b minus that of a.
        p_value, p_holm: two-sided; with Holm's correction over the pairings.
        detectable: the smallest difference that so many episodes, as many of them discordant, detect in four
            of five cases; None if none.
    """

    a: str
    b: str
    both: int
    only_a: int
    only_b: int
    neither: int
    difference: float
    p_value: float
    p_holm: float
    detectable: float | None = None


class EvalResults(Record):
    """The results of an evaluation, ``eval.json``.

    Attributes:
        created: UTC, ISO 8601.
        command, commit, versions, hardware: see ``provenance.made_with``.
        environment: the options of the environment; ``flags`` all that followed ``--``.
        tasks: instructions by name.
        episodes: per task.
        seed, batch_size, rendering, threads, device: see ``options.Eval``.
        policies: by name, the baseline first.
        pairings: of every other policy with the baseline.
        findings: of the guards.
        warnings: what to know before the numbers are compared with others.
        seconds: wall time of the last attempt.
    """

    created: str
    command: str
    commit: str | None = None
    versions: dict[str, str]
    hardware: dict[str, Any]
    environment: dict[str, Any]
    flags: list[str]
    tasks: dict[str, str]
    episodes: int
    seed: int
    batch_size: int
    rendering: str
    threads: int
    device: str
    policies: dict[str, PolicyResults]
    pairings: list[Pairing] = Field(default_factory=list)
    findings: list[Found] = Field(default_factory=list)
    warnings: list[str] = Field(default_factory=list)
    seconds: float = 0.0

    def save(self, path: Path) -> None:
        write_text(path, json.dumps(self.plain(), indent=1))

    def beside(self, others: Sequence[tuple[Path, "EvalResults"]]) -> None:
        """Adds the policies of earlier evaluations, with warnings where they were made otherwise.

        Raises:
            EvalError: one is of other episodes, or has a policy of the same name.
        """
        for folder, other in others:
            for name, theirs in other.policies.items():
                if name in self.policies:
                    raise EvalError(
                        f"Both evaluations have a policy called {name!r}: give it another name here, or "
                        f"leave --beside {folder} out."
                    )
                self.policies[name] = theirs.model_copy(update={"of": str(folder)})
            self.warnings += unlike(self, other, folder)

    def compare(self) -> None:
        """Fills in the pairings of all other policies with the first."""
        first, *others = self.policies
        self.pairings = [paired(self.policies[first], self.policies[b], first, b) for b in others]
        for pairing, p in zip(self.pairings, holm([p.p_value for p in self.pairings]), strict=True):
            pairing.p_holm = p


def paired(one: PolicyResults, other: PolicyResults, a: str, b: str) -> Pairing:
    """McNemar's test of two policies.

    Raises:
        StatsError: they ran other episodes.
    """
    ordered = [sorted(of.episodes, key=lambda e: (e.task, e.seed)) for of in (one, other)]
    names = [[(e.task, e.seed) for e in of] for of in ordered]
    wins = [[e.success for e in of] for of in ordered]
    found = mcnemar(*wins, a_episodes=names[0], b_episodes=names[1])
    return Pairing(
        a=a,
        b=b,
        both=found.both,
        only_a=found.only_a,
        only_b=found.only_b,
        neither=found.neither,
        difference=found.difference,
        p_value=found.p_value,
        p_holm=found.p_value,
        detectable=detectable_difference(
            found.episodes, discordant=(found.only_a + found.only_b) / found.episodes
        ),
    )


def read_beside(folders: Sequence[Path], wanted: Mapping[str, Any]) -> list[tuple[Path, EvalResults]]:
    """Reads earlier evaluations, of the same episodes.

    Args:
        folders: of the evaluations.
        wanted: tasks, number of episodes, seed and environment of this one.

    Raises:
        EvalError: there is none in a folder, or it is of other episodes; says what differs.
    """
    found = []
    for folder in folders:
        path = folder / RESULTS
        if not path.is_file():
            raise EvalError(f"--beside {folder}: it holds no finished evaluation (no {RESULTS}).")
        other = EvalResults.read(path, "Evaluate there again.")
        there = {
            "tasks": list(other.tasks),
            "episodes": other.episodes,
            "seed": other.seed,
            "environment": other.environment,
            "rendering": other.rendering,
        }
        if differing := "; ".join(differences(there, wanted)):
            raise EvalError(f"--beside {folder} is of other episodes ({differing}).")
        found.append((folder, other))
    return found


def unlike(here: EvalResults, other: EvalResults, folder: Path) -> list[str]:
    """Warnings about two results that stand side by side and were not made alike."""
    makes = [
        one.versions | {"batch size": str(one.batch_size), "threads": str(one.threads), "device": one.device}
        for one in (here, other)
    ]
    differing = [
        f"{name} {makes[0].get(name, 'none')} here, {makes[1].get(name, 'none')} there"
        for name in sorted({*makes[0], *makes[1]})
        if makes[0].get(name) != makes[1].get(name)
    ]
    if not differing:
        return []
    return [
        f"The policies of {folder} were not evaluated as these were ({'; '.join(differing)}): a difference "
        "may come from there."
    ]
