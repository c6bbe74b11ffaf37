"""Makes waiting OpenMP threads sleep: on a busy machine, spinning ones are slower than a single thread.

OpenMP reads ``OMP_WAIT_POLICY`` from the environment when it is loaded, with torch: the variable has to be
there before torch is imported, and before a process that will import it is started.
"""

import os


def waiting_threads_sleep() -> None:
    """Sets ``OMP_WAIT_POLICY`` to passive, unless the user has set it.

    It holds for processes started from now on, and for this one if it has not imported torch.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
