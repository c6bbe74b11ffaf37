"""Process groups that end with their leader, however that one ended.

A process of a torch ``DataLoader`` looks whether the training that started it still runs, but only once it
has imported everything; of a training that is killed before, it stays for good, with a gigabyte.
"""

import os
import signal
import sys
import time

# Seconds between two looks at the leader; for the others to clean up before they are killed.
EVERY, GRACE = 0.5, 1.0


def end_group_with_leader() -> None:
    """Makes all processes of this one's group end, by SIGTERM, then SIGKILL, as soon as this one has ended.

    Starts a small process that waits for that end. Does nothing in a process that does not lead its group:
    start that with ``start_new_session=True``.
    """
    leader = os.getpid()
    if os.name == "posix" and os.getpgrp() == leader:
        # Without the site's packages, or the package: it lasts as long as the leader.
        command = [sys.executable, "-I", "-S", __file__, str(leader)]
        os.posix_spawn(sys.executable, command, os.environ)


def follow(leader: int) -> None:
    """Waits for the end of the process that started this one, and ends their group."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The group keeps its number while this process is in it.
    while os.getppid() == leader:
        time.sleep(EVERY)
    os.killpg(leader, signal.SIGTERM)
    time.sleep(GRACE)
    os.killpg(leader, signal.SIGKILL)


if __name__ == "__main__":
    follow(int(sys.argv[1]))
