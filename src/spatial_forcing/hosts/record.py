"""Records of LeRobot's policies: visual tokens, preprocessing of images, and a small policy for tests.

Nothing here imports LeRobot: a record names its modules and looks at the policy that it is given.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Generator, Tensor, nn

from spatial_forcing.tap import Host


@dataclass(frozen=True, kw_only=True)
class SmallPolicy:
    """Recipe of a small policy of LeRobot's own classes, built in a second on a CPU, without downloads.

    The tests run over every record that has one.

    Attributes:
        options: (folder) -> options of the configuration, of four blocks; what they name on disk is made in
            the folder.
        image_hw: height and width of its images, best neither square nor a multiple of a patch.
        without_data: options that stand in for the statistics of a data set.
        parts: () -> a context in which names and sizes that are written into LeRobot's code mean small ones.
        steps: (config, **options) -> the steps of its preprocessor that make prompts, for policies that take
            images in one.
        inputs: (config, batch size, random numbers) -> what else its preprocessor puts into a batch.
        needs: packages beyond those of the extra ``policies`` that it imports.
        extra: the extra that brings them.
    """

    options: Callable[[Path], dict[str, Any]]
    image_hw: tuple[int, int]
    without_data: Callable[[], dict[str, Any]] = dict
    parts: Callable[[], AbstractContextManager[Any]] = nullcontext
    steps: Callable[..., list[Any]] | None = None
    inputs: Callable[[Any, int, Generator], dict[str, Tensor]] = lambda config, size, draw: {}
    needs: tuple[str, ...] = ()
    extra: str = "policies"


@dataclass(frozen=True, kw_only=True)
class PolicyRecord:
    """Record of a LeRobot policy: everything that Spatial Forcing needs to know of it.

    Attributes:
        type: what LeRobot calls it: ``--policy.type=<type>``, ``sf_<type>`` with forcing.
        config: name of the configuration class; the policy class is named alike, as LeRobot demands.
        module: where the configuration is; policy and processors are where LeRobot looks for them,
            ``modeling_...`` and ``processor_...`` beside a ``configuration_...``. LeRobot's own if None.
        host: (policy, views in the token sequence) -> Host.
        upstream: policy -> what produces the visual tokens before the first block.
        sequence: the token sequence as text, for docs and ``doctor``.
        unfreeze: the flags that make the tokens trainable when nothing before the tap is.
        language_model: whether the blocks are a language model, which full fine-tuning can harm if it is
            pretrained.
        pretrained: (config) -> whether the blocks start from trained weights.
        pixels: how the policy's preprocessor leaves images: as ``normalization_mapping`` says ("config"),
            or always with ImageNet's mean and deviation.
        images: (policy, batch) -> the images that the policy sees, one B3HW tensor in [0, 1] per view, for
            preprocessors that leave none in the batch. What they crop they leave there as ``prompted.Packed``
            (GR00T's is made to).
        views: (config, cameras in the batch) -> how many views have tokens in the sequence; the cameras that
            are in the batch come first.
        published_late: whether the public Spatial Forcing code reads this policy one token late.
        small: how a small one is made; None leaves the policy out of the tests over all.
        tap, tokens, trains, page: for the table of policies: the recommended tap, the visual tokens of a
            view, what must train, and the page in ``docs/``.
    """

    type: str
    config: str
    host: Callable[[Any, int], Host]
    upstream: Callable[[Any], list[nn.Module]]
    sequence: str
    unfreeze: str = ""
    language_model: bool = True
    pretrained: Callable[[Any], bool] = lambda config: config.pretrained_path is not None
    pixels: Literal["config", "imagenet"] = "config"
    images: Callable[[Any, Mapping[str, Any]], list[Tensor]] | None = None
    views: Callable[[Any, int], int] = lambda config, present: len(config.image_features)
    published_late: bool = False
    module: str | None = None
    small: SmallPolicy | None = None
    tap: str = ""
    tokens: str = ""
    trains: str = ""
    page: str = ""

    @property
    def configuration_module(self) -> str:
        return self.module or f"lerobot.policies.{self.type}.configuration_{self.type}"

    @property
    def modeling_module(self) -> str:
        return self.configuration_module.replace("configuration_", "modeling_")

    @property
    def processor_module(self) -> str:
        return self.configuration_module.replace("configuration_", "processor_")
