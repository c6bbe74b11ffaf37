"""Tries every case and prints what failed, and a table of how many of each kind were tried.

python tests/malformed              # all of them, a few minutes
python tests/malformed verify video # those whose name holds one of these words
"""

import os
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MUJOCO_GL", "osmesa")
sys.path.insert(0, str(Path(__file__).parents[1]))

from malformed.bench import Bench
from malformed.cases import CASES


def main(words: list[str]) -> None:
    # Libraries in C print to standard error what they like; what we say is caught before it gets there.
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    chosen = [case for case in CASES if not words or any(word in case.name for word in words)]
    start, failed = time.perf_counter(), 0
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "bench").build()
        for case in chosen:
            began = time.perf_counter()
            try:
                bench.try_case(case)
            except Exception as error:  # what a case did not expect is no reason to leave the others out
                failed += 1
                print(f"FAILED {case.name}\n{type(error).__name__}: {error}".replace("\n", "\n    "), "\n")
            if (took := time.perf_counter() - began) > 5:
                print(f"{took:.0f} s: {case.name}")
        bench.check_whole()
    print(f"{'':<16}" + "cases")
    for of, count in sorted(Counter(case.of for case in chosen).items()):
        print(f"{of:<16}{count:>5}")
    print(
        f"{'by kind':<16}" + ", ".join(f"{k} {n}" for k, n in Counter(c.kind for c in chosen).most_common())
    )
    print(f"{len(chosen)} cases, {failed} failed, {time.perf_counter() - start:.0f} s")
    sys.exit(failed > 0)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except Exception:
        print(traceback.format_exc())
        sys.exit(1)
