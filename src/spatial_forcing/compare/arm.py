"""The arms of a comparison: presets by name, or entries of an arms file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from spatial_forcing.control import CONTROLS
from spatial_forcing.errors import SpatialForcingError, UnknownNameError
from spatial_forcing.listed import Listing, entries_as_written, entries_in

Role = Literal["arm", "control", "reference"]
ROLES = ("arm", "control", "reference")
PLAIN = "plain"
PATH = "policy.path"
LISTING = Listing("--arms-file", "arm")
# The 2D and the untrained teacher that stand beside a 3D one; DINOv2 is what VGGT's encoder began as.
TEACHERS_2D = {"vggt-tiny-sim": "vggt-tiny-sim-2d", "vggt-tiny-sim-robot": "vggt-tiny-sim-2d"}
TEACHERS_UNTRAINED = {"vggt-tiny-sim": "untrained-tiny"}
TEACHER_2D = "dinov2-base"
CONTROL_LABELS = {
    "shuffled": "toward the features of another frame",
    "place": "toward the place of each token alone",
}


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison: a training configuration; options that it does not set are equal in all arms.

    Attributes:
        name: also of its folders: letters, digits, - and _.
        label: display name.
        role: "arm"; "control" for one that is forced toward a target without the teacher's content;
            "reference" for a line that tells what the numbers mean, a policy without images for instance.
        forcing: options of ``--policy.forcing``; None trains the plain policy.
        policy: options of the policy that differ; of references only.
        of: of a control, the arm that is held against it; all arms are if None.
        start: checkpoint whose policy this arm goes on training (LeRobot's ``--policy.path``): a folder, or a
            name on the Hub. None starts as the command says.
    """

    name: str
    label: str = ""
    role: str = "arm"
    forcing: dict[str, Any] | None = None
    policy: dict[str, Any] = field(default_factory=dict)
    of: str | None = None
    start: str | None = None

    def __post_init__(self) -> None:
        check_entry("name", self.name)
        check_entry("role", self.role)
        if self.policy and self.role != "reference":
            raise SpatialForcingError(
                f"The arm {self.name!r} has options of the policy ({', '.join(self.policy)}), which all arms "
                "share: give them after --, or make it a reference (role: reference)."
            )
        if self.of is not None and self.role != "control":
            raise SpatialForcingError(
                f"The arm {self.name!r} is a {self.role} of {self.of!r}; only a control is one of an arm: "
                "leave out of, or say role: control."
            )

    @property
    def differs(self) -> list[str]:
        """The flags that this arm adds to the command."""
        options = {} if self.start is None else {PATH: self.start}
        options |= {f"policy.forcing.{name}": value for name, value in (self.forcing or {}).items()}
        options |= {f"policy.{name}": value for name, value in self.policy.items()}
        return [f"--{name}={flag_value(value)}" for name, value in options.items()]


def flag_value(value: Any) -> str:
    """A value as text that LeRobot's parser reads."""
    if isinstance(value, list):
        return json.dumps(value)
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    return str(value)


def check_entry(key: str, value: Any) -> None:
    """Raises :class:`SpatialForcingError` if an arm cannot have this value."""
    if key == "name" and not (value and all(c.isalnum() or c in "-_" for c in value)):
        raise SpatialForcingError(f"An arm's name has letters, digits, - and _; got {value!r}.")
    if key == "role" and value not in ROLES:
        raise UnknownNameError("role", value, ROLES)
    if key == "forcing" and value is not None and "cache" in value:
        raise SpatialForcingError(
            "Features are stored by the comparison itself, from its training episodes alone. Leave cache "
            "out; --features online asks the teacher at every step."
        )


def preset_arms(names: Sequence[str], teacher: str) -> list[Arm]:
    """The preset arms of some names.

    Args:
        names: plain, forced, 2d, untrained, published, shuffled or place.
        teacher: a registered teacher, or a path.

    Raises:
        UnknownNameError: there is no such preset.
        SpatialForcingError: no untrained version of the teacher is known.
    """
    known = presets(teacher)
    for name in names:
        if name not in known:
            raise UnknownNameError("arm", name, known)
        if name == "untrained" and teacher not in TEACHERS_UNTRAINED:
            raise SpatialForcingError(
                f"No untrained version of the teacher {teacher!r} is registered (there is one of "
                f"{', '.join(TEACHERS_UNTRAINED)}). Save one and name it in an arms file."
            )
    return [known[name] for name in names]


def with_teacher(arm: Arm, teacher: str) -> Arm:
    """An arm with forcing that names a teacher, in each of its alignments: its own, or else this one.

    Raises:
        SpatialForcingError: its alignments cannot be read, or one names a cache.
    """
    if arm.forcing is None:
        return arm
    if "alignments" not in arm.forcing:
        return replace(arm, forcing={"teacher": teacher, **arm.forcing})
    forcing = dict(arm.forcing)
    teacher = forcing.pop("teacher", teacher)
    listing = Listing(f"forcing.alignments of the arm {arm.name!r}", "alignment")
    entries = entries_as_written(forcing["alignments"], listing)
    for entry in entries:
        check_entry("forcing", entry)
    forcing["alignments"] = [{"teacher": teacher, **entry} for entry in entries]
    return replace(arm, forcing=forcing)


def controls_for(arms: Sequence[Arm], names: Sequence[str], of: str | None = None) -> list[Arm]:
    """Controls with the forcing options (site, weight, loss, ...) of the arm under test.

    Args:
        arms: of the comparison.
        names: of the controls.
        of: the arm under test; the first forced one if None. Without any there are no controls.

    Raises:
        UnknownNameError: no forced arm is called so.
    """
    forced = {arm.name: arm for arm in arms if arm.forcing is not None and arm.role == "arm"}
    if of is not None and of not in forced:
        raise UnknownNameError("forced arm", of, forced)
    if not forced or not names:
        return []
    arm = forced[of] if of is not None else next(iter(forced.values()))
    return [Arm(name, CONTROL_LABELS[name], "control", controlled(arm.forcing or {}, name)) for name in names]


def controlled(forcing: Mapping[str, Any], control: str) -> dict[str, Any]:
    """Forcing options with a control for a target, in each alignment of several."""
    if "alignments" not in forcing:
        return {**forcing, "control": control}
    return {**forcing, "alignments": [{**entry, "control": control} for entry in forcing["alignments"]]}


def presets(teacher: str) -> dict[str, Arm]:
    """All preset arms by name, for a teacher."""
    forced = {"teacher": teacher}
    other, untrained = TEACHERS_2D.get(teacher, TEACHER_2D), TEACHERS_UNTRAINED.get(teacher)
    arms = [
        Arm(PLAIN, "without forcing"),
        Arm("forced", "Spatial Forcing", forcing=forced),
        Arm("2d", f"toward a 2D teacher, {other}", forcing={"teacher": other}),
        Arm("untrained", f"toward an untrained teacher, {untrained}", forcing={"teacher": untrained}),
        Arm("published", "Spatial Forcing, the public code's numerics", forcing=forced | {"published": True}),
    ]
    arms += [Arm(name, CONTROL_LABELS[name], "control", forced | {"control": name}) for name in CONTROLS]
    return {arm.name: arm for arm in arms}


def arms_of(
    names: Sequence[str],
    file: str | None,
    teacher: str,
    *,
    controls: bool = True,
    controls_of: str | None = None,
) -> list[Arm]:
    """The arms of a comparison: presets, then those of a file, then the controls that are not among them.

    Args:
        names: of presets.
        file: an arms file (YAML, JSON, or JSON text); None for none.
        teacher: of the presets, and of arms with forcing that name none.
        controls: whether the two controls are added.
        controls_of: the arm whose forcing options they have; the first forced one if None.

    Raises:
        SpatialForcingError: no arm, one arm alone, two of one name, an entry of the file that cannot be, or
            another control of the name of one that ``controls_of`` asks for.
        UnknownNameError: no such preset, or no such arm for the controls, or for one of the file.
    """
    arms = preset_arms(names, teacher)
    if file is not None:
        arms += [with_teacher(Arm(**entry), teacher) for entry in entries_in(file, LISTING, Arm, check_entry)]
    if controls:
        # A control of another arm, at another weight or toward other targets, does not take their place.
        there, named = [arm.forcing for arm in arms], {arm.name for arm in arms}
        wanted = [arm for arm in controls_for(arms, CONTROLS, controls_of) if arm.forcing not in there]
        taken = [arm.name for arm in wanted if arm.name in named]
        if taken and controls_of is not None:
            raise SpatialForcingError(
                f"--controls-of {controls_of} asks for a control {taken[0]!r} with the options of that arm, "
                "and there is another one of that name: rename it, or leave it out."
            )
        arms += [arm for arm in wanted if arm.name not in taken]
    seen = [arm.name for arm in arms]
    twice = sorted({name for name in seen if seen.count(name) > 1})
    if twice:
        raise SpatialForcingError(f"Two arms are called {twice[0]!r}: rename one.")
    under_test = [arm.name for arm in arms if arm.role == "arm"]
    for arm in arms:
        if arm.of is not None and arm.of not in under_test:
            raise UnknownNameError(f"arm of the control {arm.name!r}", arm.of, under_test)
    if len(arms) < 2:
        raise SpatialForcingError(
            f"A comparison takes at least two arms; got {', '.join(seen) or 'none'}. Presets: "
            f"{', '.join(presets(teacher))}."
        )
    return arms
