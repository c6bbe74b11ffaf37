"""A comparison of one thing: what it is given, and the findings it makes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from spatial_forcing.evaluation.guards.shown import Shown
from spatial_forcing.evaluation.guards.trained import GuardedPolicy, Trained
from spatial_forcing.evaluation.known import KNOWN, Known
from spatial_forcing.evaluation.plan import EvalTask
from spatial_forcing.evaluation.results import Found

# Found by what demonstrations look like on average, and how many that takes.
BY_CHANCE, ENOUGH = ("orientation", "cameras' order", "state's range"), 8


@dataclass
class Case:
    """A policy, its training data and an environment, to be compared.

    Attributes:
        name: of the policy.
        policy: its configuration and preprocessor.
        config: of the environment.
        tasks: of it.
        trained, shown: what was looked at.
        rendering: of the environment, see ``known.drawn_as``.
        findings: so far.
        agreed: what was compared and fits, as words.
    """

    name: str
    policy: GuardedPolicy
    config: Any
    tasks: tuple[EvalTask, ...]
    trained: Trained
    shown: Shown
    rendering: str = "stock"
    findings: list[Found] = field(default_factory=list)
    agreed: list[str] = field(default_factory=list)

    @property
    def known(self) -> Known | None:
        return KNOWN.get(self.config.type)

    def say(
        self, kind: Literal["wrong", "odd"], about: str, *, expected: str, found: str, advice: str
    ) -> None:
        """Adds a finding. What a few demonstrations look like may be chance, and is odd at most."""
        if about in BY_CHANCE and self.trained.missing == "" and self.trained.count < ENOUGH:
            kind, advice = (
                "odd",
                f"{advice} The data set has {self.trained.count} episodes: it may be chance.",
            )
        self.findings.append(
            Found(kind=kind, policy=self.name, about=about, expected=expected, found=found, advice=advice)
        )

    def fits(self, about: str) -> None:
        """Notes that something was compared, unless there is a finding about it."""
        if all(one.about != about for one in self.findings):
            self.agreed.append(about)


Guard = Callable[[Case], None]


def numbers(values: Any, digits: int = 2) -> str:
    """Numbers for a message: 0.12, -3.00."""
    return ", ".join(f"{float(value) + 0.0:.{digits}f}" for value in values)
