r"""An OpenVLA of 2 M parameters, to try ``sf_openvla_oft`` in minutes without a download.

    python examples/small_openvla.py --out small-openvla
    lerobot-train --policy.type=sf_openvla_oft --policy.base_checkpoint=small-openvla \
        --policy.tokenizer=small-openvla --policy.device=cpu ...

Writes a checkpoint in the released layout, plain OpenVLA as openvla/openvla-7b is: the real classes at small
size with random weights, and a tokenizer of a few words. It knows nothing: it shows that the path works.
docs/hosts/openvla.md has the whole command.
"""

import argparse
from pathlib import Path

from spatial_forcing.hosts.openvla_oft import small_openvla

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("small-openvla"), help="folder to write")
    print(small_openvla(parser.parse_args().out))
