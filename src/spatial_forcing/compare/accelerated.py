"""``accelerate launch`` that ends with the process that started it, and its ranks with it.

python -m spatial_forcing.compare.accelerated --num_processes=2 -m spatial_forcing.compare.run <folder>
"""

import sys


def main() -> None:
    from spatial_forcing.process_group import end_group_with_leader
    from spatial_forcing.processes import end_with_parent

    end_group_with_leader()
    end_with_parent()
    from accelerate.commands.launch import main as launch

    sys.argv[0] = "accelerate launch"
    launch()


if __name__ == "__main__":
    main()
