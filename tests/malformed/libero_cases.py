"""``libero check``, ``libero collect``: what is wrong whether or not LIBERO is installed."""

from malformed.case import Case, command

COLLECT = "libero collect --out {here}/demos"

CASES: list[Case] = [
    command("libero collect", kind, f"{COLLECT} {options}", says, about=options)
    for kind, options, says in (
        ("name", "--suite libero_objects", "Did you mean 'libero_object'"),
        (
            "name",
            "--suite libero_goal",
            "solves the tasks of libero_spatial and libero_object, not those of libero_goal",
        ),
        ("name", "--start home", "--start"),
        ("name", "--rendering fast", "--rendering"),
        ("number", "--tasks 10", "numbered 0 to 9; got 10"),
        ("number", "--tasks -1", "numbered 0 to 9; got -1"),
        ("number", "--tasks 1 1", "is named twice"),
        ("number", "--episodes 0", "episodes must be at least 1; got 0"),
        ("number", "--seed -1", "seed must be at least 0; got -1"),
        ("number", "--workers 0", "at least one process; got 0"),
        ("type", "--size large", "--size"),
        ("size", "--size 8", "size must be at least 16; got 8"),
    )
]
CASES += [
    command("libero collect", "missing", "libero collect", "--out"),
    command("libero check", "name", "libero check --suites libero_spatail", "Did you mean 'libero_spatial'"),
    command("libero check", "missing", "libero", "needs a subcommand: libero check, libero collect"),
    command("libero check", "name", "libero chekc", "Did you mean 'check'"),
]
