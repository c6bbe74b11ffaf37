"""Process groups that end with their leader, however that one ended.

A process of a torch ``DataLoader`` checks whether the training that started it is still alive, but only after
its imports: if the training is killed before that, the process stays forever and holds a gigabyte.
"""

import os
import signal
import sys
import time

# Seconds between two looks at the leader; for the others to clean up before they are killed.
EVERY, GRACE = 0.5, 1.0


def end_group_with_leader() -> None:
    """Makes all processes of this one's group end, by SIGTERM, then SIGKILL, as soon as this one has ended.

    Starts a small process that waits for that end. Does nothing in a process that does not lead a session:
    start that with ``start_new_session=True``. (The group of a process that leads only a group may hold
    others, as that of a shell's pipeline does.)
    """
    leader = os.getpid()
    if os.name == "posix" and os.getsid(0) == leader:
        # Without the site's packages, or the package: it lasts as long as the leader. And without its output,
        # whose reader waits for the end of all that write.
        command = [sys.executable, "-I", "-S", __file__, str(leader)]
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_RDWR, 0) for stream in range(3)]
        os.posix_spawn(sys.executable, command, os.environ, file_actions=silent)


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
