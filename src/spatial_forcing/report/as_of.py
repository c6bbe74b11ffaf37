"""A comparison's results as of an earlier evaluation: which arm was ahead in the middle of training?"""

from spatial_forcing.json_record import ResultsError
from spatial_forcing.results import Results, RunResults


def as_of(results: Results, step: int) -> Results:
    """The results that a comparison would have had, had its trainings been judged at an earlier checkpoint.

    Learning-rate schedules and all else are those of the whole training, so this is no comparison of shorter
    trainings. References are evaluated at their last checkpoint alone and the probe reads the last policies:
    both are left out.

    Args:
        results: of the whole.
        step: one at which the arms were evaluated.

    Raises:
        ResultsError: it is none.
    """
    runs = [run for run in results.runs if results.arms[run.arm].role != "reference"]
    evaluated = sorted({one.step for run in runs for one in run.evaluations})
    if step not in evaluated:
        known = ", ".join(map(str, evaluated)) or "none"
        raise ResultsError(f"The arms were not evaluated at step {step}. Evaluated steps: {known}.")
    arms = {name: arm for name, arm in results.arms.items() if arm.role != "reference"}
    pairs = results.comparisons
    return results.model_copy(
        update={
            "title": f"{results.title} (at step {step} of {max(run.steps for run in runs)})",
            "arms": arms,
            "runs": [_run_as_of(run, step) for run in runs],
            "comparisons": None if pairs is None else [pair for pair in pairs if arms.keys() >= {*pair}],
            "probe": None,
            "probe_sites": None,
        }
    )


def _run_as_of(run: RunResults, step: int) -> RunResults:
    return run.model_copy(
        update={
            "steps": step,
            "curves": [row for row in run.curves if row.step <= step],
            "evaluations": [one for one in run.evaluations if one.step <= step],
            "videos": None,
        }
    )
