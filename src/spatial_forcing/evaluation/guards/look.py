"""Runs all guards on a policy and an environment, and prints what they found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spatial_forcing.evaluation.env_flags import EvalError
from spatial_forcing.evaluation.guards import actions, cameras, states
from spatial_forcing.evaluation.guards.compare import Case, Guard
from spatial_forcing.evaluation.guards.gripper import gripper
from spatial_forcing.evaluation.guards.shown import shown_by
from spatial_forcing.evaluation.guards.trained import GuardedPolicy, trained_on
from spatial_forcing.evaluation.known import drawn_as
from spatial_forcing.evaluation.plan import EvalTask
from spatial_forcing.evaluation.results import Found


def instructions(case: Case) -> None:
    """Policies are told what they were told in training."""
    told = case.trained.instructions
    new = [task.instruction for task in case.tasks if task.instruction not in told]
    if told and new:
        case.say(
            "odd",
            "instructions",
            expected=f"instructions of {case.trained.source}, such as {told[0]!r}",
            found=f"{len(new)} of {len(case.tasks)} tasks say others, such as {new[0]!r}",
            advice="A policy that listens may not know what to do; one without language does not mind.",
        )
    if told:
        case.fits("instructions")


GUARDS: tuple[Guard, ...] = (
    cameras.cameras,
    cameras.sizes,
    cameras.orientation,
    cameras.rendering,
    states.width,
    states.ranges,
    states.constants,
    states.quaternion,
    actions.width,
    actions.ranges,
    actions.mode,
    actions.frequency,
    gripper,
    states.layout,
    actions.replay,
    instructions,
)


@dataclass(frozen=True)
class Guarded:
    """What the guards say of one policy.

    Attributes:
        policy: its name.
        agreed: what was compared and fits, as words.
        missing: what could not be compared; empty if nothing.
        findings: all of it.
    """

    policy: str
    agreed: list[str]
    missing: str
    findings: list[Found]

    @staticmethod
    def of(case: Case) -> "Guarded":
        """What was found of a case."""
        return Guarded(case.name, case.agreed, case.trained.missing, case.findings)

    @property
    def warnings(self) -> list[str]:
        """The findings as sentences, each after its kind."""
        return [f"{one.kind}: {one.text}" for one in self.findings]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return vars(self) | {"findings": [one.plain() for one in self.findings]}

    @staticmethod
    def from_plain(said: Mapping[str, Any], where: str) -> "Guarded":
        """Inverse of :meth:`plain`; ``where`` is the file, for errors."""
        return Guarded(**{**said, "findings": [Found.checked(one, where) for one in said["findings"]]})


def examined(
    policies: Mapping[str, GuardedPolicy],
    config: Any,
    tasks: tuple[EvalTask, ...],
    *,
    seed: int,
    dataset: str | None = None,
    rendering: str = "stock",
) -> list[Guarded]:
    """Compares policies and their training data with an environment.

    Args:
        policies: configuration and processors, by name.
        config: of the environment.
        tasks: of it; the first is looked at.
        seed: of its first episode.
        dataset: see ``trained.trained_on``.
        rendering: see ``known.drawn_as``.

    Raises:
        SpatialForcingError: the data set or the environment cannot be read or made.
    """
    said, looks = [], {}
    for name, policy in policies.items():
        trained = trained_on(policy, dataset, [task.instruction for task in tasks])
        # Policies of one data set share a look, which takes a minute in a large simulator.
        key = trained.source, policy.config.type, tuple(policy.rename_map.items())
        if key not in looks or trained.missing:
            with drawn_as(config.type, rendering):
                looks[key] = shown_by(config, tasks[0], seed, policy, trained)
        case = Case(name, policy, config, tasks, trained, looks[key], rendering)
        for guard in GUARDS:
            guard(case)
        said.append(Guarded.of(case))
    return said


def tell(guarded: Sequence[Guarded], console: Any, *, anyway: bool, undone: str = "rolled out") -> None:
    """Prints what fits, what could not be compared, and findings.

    Args:
        guarded: policy by policy.
        console: where to.
        anyway: whether to go on where something is wrong.
        undone: what was not begun otherwise, for the error.

    Raises:
        EvalError: all that is wrong, if something is, unless ``anyway``.
    """
    for of in guarded:
        said = f"{of.policy} fits in: {', '.join(of.agreed) or 'nothing'}."
        said += f" {of.policy} {of.missing}" if of.missing else ""
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    for one in (one for of in guarded for one in of.findings if anyway or one.kind != "wrong"):
        console.print(f"[{'red' if one.kind == 'wrong' else 'yellow'}]{one.kind}:[/] ", end="")
        console.print(one.text, highlight=False, markup=False, soft_wrap=True)
    if not anyway:
        check_findings([one for of in guarded for one in of.findings], undone)


def check_findings(found: Sequence[Found], undone: str = "rolled out") -> None:
    """Raises :class:`EvalError` with all that is wrong, if something is; ``undone`` is what was not begun."""
    wrong = [one.text for one in found if one.kind == "wrong"]
    if wrong:
        things = "One thing" if len(wrong) == 1 else f"{len(wrong)} things"
        raise EvalError(
            f"{things} would make this evaluation pointless. Put it right, or give --anyway. Nothing was "
            f"{undone}.\n" + "\n".join(f"- {text}" for text in wrong)
        )
