"""A plug-in of pytest: this package as LeRobot imports it, every patch switched on before tests are read."""

from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins

from spatial_forcing import patches

register_third_party_plugins()
if "sf_smolvla" not in PreTrainedConfig.get_known_choices():
    raise RuntimeError(
        "LeRobot does not find the plug-in: install this package, for instance with `make setup`."
    )
patches.for_training(stored=True, names=True, packed=True)
patches.take_forcing_flags()
ON = [patch for patch in patches.PATCHES if patches.is_on(patch)]
# The two others are the doctor's, for a moment, and sys.excepthook.
if ON != [patches.CHUNKS, patches.TRANSFORMS, patches.CROPS, patches.FLAGS]:
    raise RuntimeError(f"Not every patch is on, only: {', '.join(patch.name for patch in ON)}.")
