"""Memory of a training step of OpenVLA with LoRA, by arithmetic: computed, not measured.

Counted are weights, gradients, AdamW's two moments, and what autograd keeps for the backward pass. Left out
are what lives for a moment only, the allocator's fragments, and communication. The tests compare the counts
with what torch keeps on a small model.

Letters: B batch, V views, P patches of a view, L tokens of the sequence, D and I width and inner width of the
language model, H heads, C and M width and inner width of a vision tower, R rank of the adapters, A and K
numbers of an action and actions of a chunk; s and a bytes of a number in the model and into an adapter.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from spatial_forcing.openvla.config import OpenVLAConfig
from spatial_forcing.openvla.model import OpenVLA
from spatial_forcing.openvla.vision import VisionBackbone

FLOAT = 4
PATCH = 14  # pixels along a side of a patch, of both towers and of VGGT-1B
# Weight, gradient and two moments in float32.
TRAINED = 4 * FLOAT
# Tokens of "In: What action should the robot take to <task>?\nOut: ", about, for a task of LIBERO.
PROMPT = 32
# VGGT-1B's aggregator: parameters, width, blocks (within views and across), patch and special tokens.
TEACHER = {"parameters": 909_112_320, "width": 1024, "depth": 24, "special": 5}


@dataclass(frozen=True)
class Setting:
    """A training step.

    Attributes:
        config: of the model.
        batch: samples.
        prompt: tokens of a prompt, BOS and the empty token before the answer included.
        rank: of LoRA on all linear layers of vision backbone, projector and language model; 0 trains all.
        number: s, bytes of a number of the model's weights and activations: 2 in bfloat16.
        adapter: a, bytes of a number that enters an adapter, where PEFT or autocast casts it and a copy is
            kept for each adapter; None where nothing is cast and adapters share what they read.
        checkpointing: whether the blocks of the language model keep their inputs alone.
        teacher: side in pixels of the images of VGGT-1B online, whose weights have `number` bytes each; None
            without it.
        teacher_number: bytes of a number of the teacher.
        forcing: whether there is a projector of Spatial Forcing, with or without the teacher online.
    """

    config: OpenVLAConfig
    batch: int = 8
    prompt: int = PROMPT
    rank: int = 32
    number: int = 2
    adapter: int | None = 2
    checkpointing: bool = False
    teacher: int | None = None
    teacher_number: int = 2
    forcing: bool = False

    @property
    def patches(self) -> int:
        """P, of a view."""
        return (self.config.towers[0].image_size // PATCH) ** 2

    @property
    def tokens(self) -> int:
        """L, of the sequence: visual ones, state, prompt, action slots and stop."""
        state = self.config.proprio_width is not None
        return self.config.views * self.patches + state + self.prompt + self.config.slots + 1


class Tower(NamedTuple):
    """Sizes of a vision tower: width C, inner width M, heads, blocks that are run, and tokens of a view."""

    width: int
    inner: int
    heads: int
    blocks: int
    tokens: int


def towers_of(setting: Setting) -> list[Tower]:
    """The two vision towers; the last block of each is not run."""
    with torch.device("meta"):
        backbone = VisionBackbone(setting.config.towers, setting.config.views)
    return [
        Tower(
            tower.embed_dim,
            tower.blocks[0].mlp.fc1.out_features,
            tower.blocks[0].attn.num_heads,
            len(tower.blocks) - 1,
            setting.patches + tower.num_prefix_tokens,
        )
        for tower in (backbone.featurizer, backbone.fused_featurizer)
    ]


class Parameters(NamedTuple):
    """Numbers of parameters: of the model, of its adapters, of its heads, which train whole, and of forcing's
    projector."""

    model: int
    adapters: int
    heads: int
    projector: int


class Bytes(NamedTuple):
    """Bytes at the end of a forward pass; `trained` is weights, gradients and moments of what trains."""

    weights: int
    trained: int
    activations: int
    teacher: int

    @property
    def total(self) -> int:
        return sum(self)


# ---- parameters


def parameters_of(setting: Setting) -> Parameters:
    """Counts parameters on a model that is built on the meta device."""
    with torch.device("meta"):
        model = OpenVLA(setting.config)
    heads = [part for part in (model.action_head, model.proprio_projector) if part is not None]
    whole = sum(parameter.numel() for parameter in model.parameters())
    trained = sum(parameter.numel() for head in heads for parameter in head.parameters())
    width, out = model.language_model.config.hidden_size, 2 * TEACHER["width"]
    # LayerNorm, Linear, GELU, Linear.
    projector = 2 * width + (width + 1) * out + (out + 1) * out if setting.forcing else 0
    return Parameters(whole - trained, adapter_parameters(model, setting.rank), trained, projector)


def adapter_parameters(model: OpenVLA, rank: int, *, published: bool = False) -> int:
    """Parameters of LoRA on the linear layers of vision backbone, projector and language model.

    Args:
        model: without adapters.
        rank: of the adapters.
        published: whether lm_head and the patch embeddings have one as well, as in the public code's runs.
    """
    count = 0
    for name, module in model.named_modules():
        if name.startswith(("action_head", "proprio_projector")):
            continue
        if isinstance(module, torch.nn.Linear) and (published or not name.endswith("lm_head")):
            count += rank * (module.in_features + module.out_features)
        elif isinstance(module, torch.nn.Conv2d) and published:
            kernel = module.kernel_size[0] * module.kernel_size[1]
            count += rank * (module.in_channels * kernel + module.out_channels)
    return count


# ---- memory


def bytes_of(setting: Setting) -> Bytes:
    """Computes the memory of a step at the end of its forward pass."""
    found = parameters_of(setting)
    if not setting.rank:
        everything = found.model + found.heads + found.projector
        return Bytes(0, TRAINED * everything, activation_bytes(setting), teacher_bytes(setting))
    trained = TRAINED * (found.adapters + found.heads + found.projector)
    return Bytes(setting.number * found.model, trained, activation_bytes(setting), teacher_bytes(setting))


def activation_bytes(setting: Setting) -> int:
    """Bytes that autograd keeps of a forward pass.

    With checkpointing the inputs of the language model's blocks, and one block while it is computed again.
    """
    config, B = setting.config, setting.batch
    text, L = config.llama(), setting.tokens
    block = B * L * llama_block_bytes(setting)
    if setting.checkpointing:
        language = text.num_hidden_layers * B * L * text.hidden_size * setting.number + block
    else:
        language = text.num_hidden_layers * block
    return vision_bytes(setting) + B * projector_bytes(setting) + language + B * head_bytes(setting)


def llama_block_bytes(setting: Setting) -> int:
    """Bytes a block of the language model keeps for each token.

    Two norms keep their input in float32 and a deviation. Attention keeps q, k, v, its output, a logarithm
    for each head, and its mask; the gated MLP the gate, before and after SiLU, and up.
    """
    text, s, R = setting.config.llama(), setting.number, setting.rank
    D, I, H = text.hidden_size, text.intermediate_size, text.num_attention_heads
    kept = 2 * (FLOAT * D + FLOAT) + max(FLOAT, s) * H + s * setting.tokens + s * (4 * D + 3 * I)
    if not R:  # the norms keep what they scale, too
        return kept + s * (2 * D + I) + 2 * s * D
    if setting.adapter is None:  # one input for q, k and v, and for gate and up; that of o is kept already
        return kept + s * (2 * D + I + 7 * R)
    return kept + setting.adapter * (6 * D + I + 7 * R)


def vision_bytes(setting: Setting) -> int:
    """Bytes that the blocks of both towers keep.

    Two norms keep their input, mean and deviation; attention q, k, v, its output and a logarithm for each
    head; the MLP what enters GELU.
    """
    s, R, images, total = setting.number, setting.rank, setting.batch * setting.config.views, 0
    for C, M, heads, blocks, tokens in towers_of(setting):
        kept = 2 * (s * C + 2 * FLOAT) + s * (4 * C + M) + max(FLOAT, s) * heads
        if setting.adapter is None or not R:
            kept += s * (2 * C + M + 4 * R)
        else:
            kept += setting.adapter * (3 * C + M + 4 * R)
        total += images * tokens * blocks * kept
    return total


def projector_bytes(setting: Setting) -> int:
    """Bytes that the projectors keep of a sample: into the language model, and of Spatial Forcing."""
    s, R = setting.number, setting.rank
    D, C = setting.config.llama().hidden_size, sum(tower.width for tower in towers_of(setting))
    into = s * (4 * C + D) + (s if setting.adapter is None else setting.adapter) * (C + 4 * C + D + 3 * R)
    out = 2 * TEACHER["width"]
    # Norm in and out, hidden before and after GELU, output and target of the cosine.
    forcing = FLOAT * (2 * D + 2 * out + 2 * out) if setting.forcing else 0
    return setting.config.views * setting.patches * (into + forcing)


def head_bytes(setting: Setting) -> int:
    """Bytes that the action head keeps of a sample, and the final norm before it."""
    config, D, s = setting.config, setting.config.llama().hidden_size, setting.number
    norm = setting.tokens * (FLOAT * D + FLOAT)
    if not config.regression:
        return norm
    # Norm in and out of all slots; then a hidden state, and of two blocks norm out, ReLU and sum.
    return norm + config.chunk * s * (2 * config.action_width * D + D + 2 * 3 * D + D)


def teacher_bytes(setting: Setting) -> int:
    """Bytes of VGGT-1B online: its weights, and what lives in a block that keeps nothing."""
    if setting.teacher is None:
        return 0
    s, width = setting.teacher_number, TEACHER["width"]
    # The stream, its norm, and the MLP's hidden state before and after GELU; the features are two wide.
    block = setting.batch * setting.config.views * teacher_tokens(setting) * width * (2 + 8 + 2)
    return s * (TEACHER["parameters"] + block)


def teacher_tokens(setting: Setting) -> int:
    """Tokens of a view in the teacher."""
    assert setting.teacher is not None
    return (setting.teacher // PATCH) ** 2 + TEACHER["special"]
