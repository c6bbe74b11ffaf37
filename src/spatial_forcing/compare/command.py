"""What ``spatial-forcing compare`` does and prints, stage by stage. Its options are ``compare.options``."""

import tempfile
from pathlib import Path
from typing import Any

from spatial_forcing.compare.arm import PLAIN, Arm


def make(comparison: Any, out: Path, how: Any, console: Any) -> Path:
    """Makes a comparison in its folder, stage by stage, and returns the path of its report."""
    from spatial_forcing.compare.features import stored_features
    from spatial_forcing.compare.gather import gather
    from spatial_forcing.compare.launch import launch, prepare
    from spatial_forcing.compare.plan import check_taken, folder_of, take_folder
    from spatial_forcing.compare.preflight import check_arms, small_version, what_differs
    from spatial_forcing.compare.run import is_complete
    from spatial_forcing.console import stages, timed
    from spatial_forcing.provenance import command_line, made_with
    from spatial_forcing.report import write_report

    made, timings = made_with(command_line()), {}
    check_taken(out, comparison)
    for name, said in what_differs(comparison):
        console.print(f"[bold]{name:<12}[/]", end=" ")
        console.print(said, highlight=False, markup=False)
    device = device_of(comparison)
    steps = comparison.evaluated_steps
    begun = any(is_complete(folder_of(out, run), steps[:1]) for run in comparison.runs())
    with stages(console) as bars:
        if not begun:
            with timed(timings, "looking at every arm"), tempfile.TemporaryDirectory() as folder:
                small = small_version(comparison, steps=1, frames=64)
                odd = check_arms(small, Path(folder), bars, device)
            for name, messages in odd.items():
                for message in messages:
                    console.print(f"[yellow]{name}:[/] ", end="")
                    console.print(message, highlight=False, markup=False)
        # Not before: what was wrong at first is then tried again in the same folder.
        take_folder(out, comparison)
        with timed(timings, "teacher features"):
            features = stored_features(comparison, out, bars, device)
        with timed(timings, "training and evaluation"):
            bar = bars.add_task("runs", total=len(comparison.runs()))

            def watch() -> None:
                done = sum(is_complete(folder_of(out, run), steps) for run in comparison.runs())
                bars.update(bar, completed=done)

            launch(prepare(comparison, out, features), out, how, watch)
            watch()
    results = gather(comparison, out, made, timings, "Does it help?")
    report = write_report(results, out)
    console.print(f"Report: [bold]{report}[/]")
    return report


def device_of(comparison: Any) -> str:
    """Where the policy trains, and so the teacher looks."""
    from spatial_forcing.compare.flags import arm_flags, policy_of

    return policy_of(arm_flags(comparison.flags, Arm(PLAIN))).device or "cpu"
