"""What an inspection found: a record for people and for programs."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spatial_forcing.openvla.layout import some
from spatial_forcing.teachers.checkpoint import Differences

SHOWN = 12  # of the values of a fact
UNKNOWN = "unknown"


@dataclass
class Inspection:
    """Record of what a path holds, and whether it would load.

    Attributes:
        path: the file or folder.
        kind: "policy", "openvla", "teacher", "feature cache" or "unknown".
        what: the same in words.
        facts: what is known of it, by name, in the order of the text; text, numbers or lists of text.
        missing, foreign, misshaped: tensors that the model needs, does not know, has in another shape.
        problems: why it does not load, as sentences.
        unmet: what was asked for and is not there, as sentences; it loads all the same.
        notes: what else one should know, as sentences.
    """

    path: Path
    kind: str
    what: str
    facts: dict[str, Any] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    foreign: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    unmet: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def loads(self) -> bool:
        """Whether it would load."""
        return self.kind != UNKNOWN and not self.problems

    def differ(self, found: Differences) -> None:
        """Notes how its tensors differ from the model's; that is a problem."""
        self.missing, self.foreign, self.misshaped = found
        if any(found):
            self.problems.append(f"Its tensors are not those of the model: {found}.")

    def plain(self) -> dict[str, Any]:
        """Converts to plain JSON data."""
        said = {name: value for name, value in vars(self).items() if name != "path"}
        return {"path": str(self.path), "loads": self.loads, **said}

    def text(self) -> str:
        """Describes it in lines for people."""
        rows: list[tuple[str, Any]] = [("what", self.what), *self.facts.items()]
        for name in ("missing", "foreign", "misshaped"):
            if names := getattr(self, name):
                rows.append((name, f"{len(names)}: {some(names)}"))
        rows += [("problem", problem) for problem in self.problems]
        rows += [("asked for", what) for what in self.unmet]
        rows += [("note", note) for note in self.notes]
        rows.append(("loads", "yes" if self.loads else "no"))
        return "\n".join([str(self.path), *(f"  {name:<18} {_said(value)}" for name, value in rows)])


def _said(value: Any) -> str:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return some([str(one) for one in value], SHOWN) or "none"
