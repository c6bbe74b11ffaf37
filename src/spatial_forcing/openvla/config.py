"""Sizes and variant of an OpenVLA (arXiv 2406.09246) or OpenVLA-OFT (arXiv 2502.19645) model.

`OpenVLAConfig()` is OpenVLA-7B as OFT released it for LIBERO. `from_released` reads the `config.json` of a
released checkpoint, `released` writes one back.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

from spatial_forcing.errors import MissingDependencyError, SpatialForcingError, UnknownNameError

DINOV2 = "vit_large_patch14_reg4_dinov2.lvd142m"
SIGLIP = "vit_so400m_patch14_siglip_224"
MODEL_TYPE, ARCHITECTURE = "openvla", "OpenVLAForActionPrediction"
# More than any model has. A damaged number must not keep a machine busy building layers.
MOST, MOST_LAYERS = 1_000_000, 1000
ATTENTION = ("sdpa", "eager")
# The key of ours in config.json: what the released format has no place for. Public code ignores it.
OWN_KEY = "spatial_forcing"
POLICY_KEY = "policy"
VARIANT_KEYS = (
    *("action_width", "chunk", "proprio_width", "views", "parallel", "regression", "film", "normalisation"),
)
# What OpenVLA-7B is, before OFT: one view, one action at a time, token by token.
PLAIN = {
    "chunk": 1,
    "proprio_width": None,
    "views": 1,
    "parallel": False,
    "regression": False,
    "film": False,
}

# OpenVLA-7B's text_config; everything else is as in LlamaConfig, whose defaults are Llama-2-7B's.
RELEASED_TEXT = {"model_type": "llama", "pad_token_id": 32000, "vocab_size": 32064}
RELEASED_EXTRA = {
    "arch_specifier": "no-align+fused-gelu-mlp",
    "hf_llm_id": "meta-llama/Llama-2-7b-hf",
    "image_resize_strategy": "resize-naive",
    "llm_backbone_id": "llama2-7b-pure",
    "llm_max_length": 2048,
    "output_projector_states": False,
    "vision_backbone_id": "dinosiglip-vit-so-224px",
}


class OpenVLAConfigError(SpatialForcingError, ValueError):
    """A configuration of OpenVLA lacks a value, or holds one that no model can have."""


class NotBuiltError(SpatialForcingError, NotImplementedError):
    """A variant of OpenVLA that exists in public, but not in this package."""


@dataclass(frozen=True)
class Tower:
    """A vision transformer of timm under the fused vision backbone.

    Attributes:
        model: what timm calls it.
        image_size: side in pixels of its square images.
        act_layer: timm's name of its activation, where it is not the model's own.
        arguments: further arguments of timm's model, for other sizes: embed_dim, depth, num_heads, ...
    """

    model: str
    image_size: int = 224
    act_layer: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenVLAConfig:
    """Sizes and variant of an OpenVLA. The defaults are OpenVLA-7B with OFT's LIBERO recipe.

    Attributes:
        towers: the two vision transformers; the first reads the first three channels of a view.
        text_config: of the Llama, as keyword arguments of `transformers.LlamaConfig`.
        action_width: numbers of an action.
        chunk: actions predicted at once.
        proprio_width: numbers of the proprioceptive state; None without proprioception.
        views: cameras, side by side in the sequence.
        parallel: whether a chunk is decoded in one pass with attention both ways (OFT), or token by token
            with causal attention (plain OpenVLA).
        regression: whether an L1 regression head gives the actions, or discrete tokens do.
        film: whether the language modulates the vision towers (FiLM, as in OFT's recipe for ALOHA).
        bins: discrete values of a number of an action, the last ids of the vocabulary.
        vocabulary_padding: unused ids at the end of the vocabulary, which no action has.
        normalisation: "q99", q01 to q99 become -1 to 1, or "bounds", min to max do.
        norm_stats: statistics of the data sets trained on, by un-normalisation key; see `Statistics`.
        extra: other keys of a released config.json, kept so that they are written back.
        policy: options of LeRobot's policy that a released config.json has no place for, by name.

    Raises:
        OpenVLAConfigError: a value is impossible, or two contradict each other.
        NotBuiltError: a single vision tower.
    """

    towers: tuple[Tower, ...] = (Tower(DINOV2), Tower(SIGLIP))
    text_config: Mapping[str, Any] = field(default_factory=lambda: dict(RELEASED_TEXT))
    action_width: int = 7
    chunk: int = 8
    proprio_width: int | None = 8
    views: int = 2
    parallel: bool = True
    regression: bool = True
    film: bool = False
    bins: int = 256
    vocabulary_padding: int = 64
    normalisation: Literal["q99", "bounds"] = "q99"
    norm_stats: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=lambda: dict(RELEASED_EXTRA))
    policy: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        object.__setattr__(self, "towers", tuple(self.towers))
        if len(self.towers) != 2:
            raise NotBuiltError(f"Expected two fused vision towers, found {len(self.towers)}: not built.")
        self._check_counts()
        if self.normalisation not in ("q99", "bounds"):
            raise UnknownNameError("normalisation of OpenVLA", self.normalisation, ("q99", "bounds"))
        if not self.parallel:
            self._check_plain()

    def _check_counts(self) -> None:
        counts = {n: getattr(self, n) for n in ("action_width", "chunk", "views", "bins", "proprio_width")}
        counts["vocab_size"] = self.text_config.get("vocab_size", 32000)
        counts["num_hidden_layers"] = self.text_config.get("num_hidden_layers", 32)
        for tower in self.towers:
            counts[f"image_size of {tower.model}"] = tower.image_size
            counts[f"depth of {tower.model}"] = tower.arguments.get("depth", 24)
        for name, value in counts.items():
            most = MOST_LAYERS if name.startswith(("num_hidden", "depth")) else MOST
            if not (_is_count(value) and value <= most) and not (name == "proprio_width" and value is None):
                raise OpenVLAConfigError(f"{name} must be a whole number from 1 to {most:,}, got {value!r}.")
        padding = self.vocabulary_padding
        if not (padding == 0 or _is_count(padding)) or self.vocabulary < self.bins:
            raise OpenVLAConfigError(
                f"A vocabulary of {counts['vocab_size']} ids must hold {self.bins} of actions beside a "
                f"padding (pad_to_multiple_of) of {padding!r}."
            )

    def _check_plain(self) -> None:
        if self.regression or self.chunk != 1 or self.proprio_width is not None or self.film:
            raise OpenVLAConfigError(
                "Decoding token by token (parallel=False) gives one action in discrete tokens: expected "
                "regression=False, chunk=1, proprio_width=None and film=False, found "
                f"regression={self.regression}, chunk={self.chunk}, proprio_width={self.proprio_width}, "
                f"film={self.film}."
            )

    @property
    def slots(self) -> int:
        """Action slots of a sequence: one per number of every action of a chunk."""
        return self.chunk * self.action_width

    @property
    def vocabulary(self) -> int:
        """Token ids in use; those of the actions are the last of them."""
        return self.text_config.get("vocab_size", 32000) - self.vocabulary_padding

    @property
    def pad_token(self) -> int:
        return self.text_config.get("pad_token_id") or 0

    def llama(self, attention: str = "sdpa") -> Any:
        """Builds the `transformers.LlamaConfig`.

        Raises:
            OpenVLAConfigError: the language model is not a Llama, or its sizes are impossible.
            UnknownNameError: the attention is neither "sdpa" nor "eager"; others take no full mask.
        """
        try:
            from transformers import LlamaConfig
        except ImportError as error:
            raise MissingDependencyError("transformers", "openvla") from error
        if attention not in ATTENTION:
            raise UnknownNameError("attention of OpenVLA", attention, ATTENTION)
        kind = self.text_config.get("model_type", "llama")
        if kind != "llama":
            raise OpenVLAConfigError(f"text_config's model_type must be 'llama', found {kind!r}.")
        named = {k: v for k, v in self.text_config.items() if k not in ("model_type", "torch_dtype", "dtype")}
        try:
            return LlamaConfig(**{**named, "attn_implementation": attention})
        except Exception as error:  # huggingface_hub's strict dataclasses have errors of their own
            raise OpenVLAConfigError(f"text_config is not one of a Llama: {error}") from error

    @classmethod
    def from_released(cls, found: Mapping[str, Any], **variant: Any) -> Self:
        """Reads the config.json of a released checkpoint.

        Args:
            found: its content.
            variant: what the released format does not say (`VARIANT_KEYS`); it wins over what a checkpoint
                that this package wrote says of itself, which wins over `PLAIN`.

        Raises:
            OpenVLAConfigError: it is not one of OpenVLA, or a key is missing or wrong.
            NotBuiltError: a single vision tower.
        """
        if found.get("model_type") != MODEL_TYPE:
            raise OpenVLAConfigError(
                f"Expected model_type {MODEL_TYPE!r} in config.json, found {found.get('model_type')!r}: "
                "this is a checkpoint of another model."
            )
        own = own_record(found)
        known = {name: own[name] for name in VARIANT_KEYS if name in own}
        text = _value(found, "text_config", dict)
        if "pad_token_id" in found:
            text = {"pad_token_id": found["pad_token_id"], **text}
        statistics = _value(found, "norm_stats", dict) if found.get("norm_stats") else {}
        consumed = {*_RELEASED_KEYS, OWN_KEY}
        return cls(
            towers=_towers(found, own.get("timm_arguments")),
            text_config=text,
            bins=found.get("n_action_bins", 256),
            vocabulary_padding=found.get("pad_to_multiple_of", 64),
            norm_stats=statistics,
            extra={k: v for k, v in found.items() if k not in consumed},
            policy=_value(own, POLICY_KEY, dict) if POLICY_KEY in own else {},
            **{**PLAIN, **known, **variant},
        )

    def released(self) -> dict[str, Any]:
        """Builds the content of a config.json, which public code reads."""
        own: dict[str, Any] = {name: getattr(self, name) for name in VARIANT_KEYS}
        if any(tower.arguments for tower in self.towers):
            own["timm_arguments"] = [dict(tower.arguments) for tower in self.towers]
        if self.policy:
            own[POLICY_KEY] = dict(self.policy)
        return {
            **self.extra,
            "architectures": [ARCHITECTURE],
            "model_type": MODEL_TYPE,
            "use_fused_vision_backbone": True,
            "timm_model_ids": [tower.model for tower in self.towers],
            "timm_override_act_layers": [tower.act_layer for tower in self.towers],
            "image_sizes": [tower.image_size for tower in self.towers],
            "text_config": dict(self.text_config),
            "n_action_bins": self.bins,
            "pad_to_multiple_of": self.vocabulary_padding,
            "norm_stats": dict(self.norm_stats),
            "pad_token_id": self.pad_token,
            OWN_KEY: own,
        }


_RELEASED_KEYS = (
    *("architectures", "model_type", "use_fused_vision_backbone", "timm_model_ids"),
    *("timm_override_act_layers", "image_sizes", "text_config", "n_action_bins", "pad_to_multiple_of"),
    *("norm_stats", "pad_token_id", "torch_dtype", "dtype"),
)


def own_record(found: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a checkpoint that this package wrote says of itself in its config.json; nothing of others."""
    return _value(found, OWN_KEY, dict) if OWN_KEY in found else {}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _value(found: Mapping[str, Any], key: str, kind: type) -> Any:
    if key not in found:
        raise OpenVLAConfigError(
            f"config.json has no {key!r}. It has: {', '.join(map(str, found)) or 'nothing'}."
        )
    if not isinstance(found[key], kind):
        raise OpenVLAConfigError(
            f"{key!r} of config.json must be a {kind.__name__}, found {type(found[key]).__name__}."
        )
    return found[key]


def _towers(found: Mapping[str, Any], arguments: Any) -> tuple[Tower, ...]:
    names, sizes = _value(found, "timm_model_ids", list), _value(found, "image_sizes", list)
    activations = found.get("timm_override_act_layers") or [None] * len(names)
    if not all(isinstance(name, str) for name in names) or not isinstance(activations, list):
        raise OpenVLAConfigError("timm_model_ids and timm_override_act_layers must be lists of timm's names.")
    if not found.get("use_fused_vision_backbone", len(names) == 2):
        raise NotBuiltError(
            "This checkpoint has a single vision tower (use_fused_vision_backbone is false): not built."
        )
    arguments = arguments or [{} for _ in names]
    if not isinstance(arguments, list) or not all(isinstance(each, dict) for each in arguments):
        raise OpenVLAConfigError(f"timm_arguments of {OWN_KEY!r} must be a list of objects.")
    lists = (names, sizes, activations, arguments)
    if len({len(each) for each in lists}) != 1:
        raise OpenVLAConfigError(
            f"timm_model_ids, image_sizes and timm_override_act_layers of config.json must be of one length, "
            f"found {', '.join(str(len(each)) for each in lists[:3])}."
        )
    return tuple(Tower(*values) for values in zip(*lists, strict=True))


def _small(model: str, **arguments: Any) -> Tower:
    return Tower(model, 28, arguments={"embed_dim": 16, "depth": 3, "num_heads": 2, **arguments})


# A model that builds in a moment, for tests and dry runs: two views of 2 x 2 patches, chunks of two actions.
SMALL = OpenVLAConfig(
    towers=(_small(DINOV2), _small(SIGLIP, mlp_ratio=4.0)),
    text_config={
        **RELEASED_TEXT,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    },
    chunk=2,
)
