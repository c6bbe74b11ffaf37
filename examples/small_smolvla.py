r"""A SmolVLM of a few hundred thousand parameters, to try ``sf_smolvla`` in minutes without a download.

    python examples/small_smolvla.py --out small-vlm
    lerobot-train --policy.type=sf_smolvla --policy.vlm_model_name=small-vlm --policy.num_vlm_layers=4 \
        --policy.resize_imgs_with_padding='[32,32]' --policy.train_expert_only=false ...

Writes the configuration of the real classes at small size and a tokenizer of a few words; LeRobot makes
random weights from it (``load_vlm_weights`` is off by default). At these sizes it learns nothing useful: it
shows that the path works. docs/hosts/smolvla.md has the whole command. Other sizes are options.
"""

import argparse
import inspect
from pathlib import Path

from spatial_forcing.hosts.smolvla import small_smolvlm

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("small-vlm"), help="folder to write")
    for name, of in list(inspect.signature(small_smolvlm).parameters.items())[1:]:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=of.default, help="%(default)s")
    sizes = vars(parser.parse_args())
    print(small_smolvlm(sizes.pop("out"), **sizes))
