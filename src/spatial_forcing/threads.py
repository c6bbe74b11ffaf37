"""Threads of matrix products that wait must not spin: on a busy machine that is slower than one thread.

OpenMP reads ``OMP_WAIT_POLICY`` from the environment when it is loaded, with torch: the variable has to be
there before torch is imported, and before a process that will import it is started.
"""

import os


def waiting_threads_sleep() -> None:
    """For processes started from now on, and for this one if it has not imported torch. A choice of the
    user's own stays."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
