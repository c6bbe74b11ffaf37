"""The calibration file of the embedded world's fixed cameras, which docs/geometry.md tries.

spatial-forcing collect --out demos --camera fixed
python recipes/calibration_of_demos.py --demos demos --out cameras.yaml
"""

import argparse
from pathlib import Path

import yaml

from spatial_forcing.sim.collect import demo_dataset, load_geometry


def calibration_of(demos: Path) -> dict:
    """The calibration of demonstrations whose cameras do not move."""
    meta, geometry = demo_dataset(demos).meta, load_geometry(demos, 0)
    cameras = {}
    for v, key in enumerate(meta.camera_keys):
        height, width = meta.features[key]["shape"][:2]
        K, extrinsics = geometry["intrinsics_TV33"][0, v], geometry["extrinsics_TV34"][0, v]
        numbers = (K[0, 0], K[1, 1], K[0, 2], K[1, 2])
        cameras[key] = {
            "size": [height, width],
            "intrinsics": dict(
                zip(("fx", "fy", "cx", "cy"), (round(x.item(), 4) for x in numbers), strict=True)
            ),
            "extrinsics": [[round(x, 6) for x in row] for row in extrinsics.tolist()],
        }
    hand = {"position": {"column": "observation.state", "indices": [0, 1, 2]}}
    return {"cameras": cameras, "end_effector": hand}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--demos", type=Path, required=True, help="folder that collect --camera fixed filled")
    parser.add_argument("--out", type=Path, default=Path("cameras.yaml"), help="file to write")
    options = parser.parse_args()
    options.out.write_text(
        yaml.safe_dump(calibration_of(options.demos), sort_keys=False, default_flow_style=None)
    )
    print(options.out)
