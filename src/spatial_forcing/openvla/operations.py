"""Operations of a training step of OpenVLA with LoRA, by arithmetic: computed, not measured.

Counted are the matrix products, two operations for a multiplication and an addition; the tests compare them
with what torch counts on a small model. Letters as in `cost`.
"""

from typing import NamedTuple

from spatial_forcing.openvla.cost import PATCH, TEACHER, Setting, teacher_tokens, towers_of


class Operations(NamedTuple):
    """Floating-point operations of the matrix products of a step."""

    forward: int
    backward: int
    teacher: int

    @property
    def total(self) -> int:
        return sum(self)


def operations_of(setting: Setting) -> Operations:
    """Computes the operations of a step's matrix products.

    A frozen layer is passed once in the backward pass, for the gradient of its input; one that trains twice.
    Of pixels no gradient is wanted. With checkpointing the blocks of the language model are computed again.
    """
    text, B, L = setting.config.llama(), setting.batch, setting.tokens
    D, I, layers = text.hidden_size, text.intermediate_size, text.num_hidden_layers
    language, attention = 2 * B * L * layers * (4 * D * D + 3 * D * I), 4 * B * L * L * D * layers
    pixels, vision, within = _vision_operations(setting)
    frozen, trained = language + vision, _head_operations(setting) + _adapter_operations(setting)
    forward = pixels + frozen + attention + within + trained
    backward = frozen if setting.rank else pixels + 2 * frozen
    backward += 2 * (attention + within + trained)
    if setting.checkpointing:
        backward += language + attention
    return Operations(forward, backward, _teacher_operations(setting))


def _vision_operations(setting: Setting) -> tuple[int, int, int]:
    """Of the patch embeddings, of the linear layers of towers and projector, and of the towers' attention."""
    images, P, linear, attention = setting.batch * setting.config.views, setting.patches, 0, 0
    towers = towers_of(setting)
    pixels = 2 * images * P * 3 * PATCH * PATCH * sum(tower.width for tower in towers)
    for C, M, _, blocks, tokens in towers:
        linear += images * 2 * tokens * blocks * C * (4 * C + 2 * M)
        attention += images * 4 * tokens * tokens * C * blocks
    C, D = sum(tower.width for tower in towers), setting.config.llama().hidden_size
    return pixels, linear + 2 * images * P * (C * 4 * C + 4 * C * D + D * D), attention


def _head_operations(setting: Setting) -> int:
    config, D = setting.config, setting.config.llama().hidden_size
    state = 0 if config.proprio_width is None else 2 * setting.batch * (config.proprio_width * D + D * D)
    if not config.regression:
        return state
    slots = config.action_width * D
    return state + 2 * setting.batch * config.chunk * (slots * D + 2 * D * D + D * config.action_width)


def _adapter_operations(setting: Setting) -> int:
    """Of LoRA in the forward pass: R numbers for each that a layer takes or gives."""
    text, images = setting.config.llama(), setting.batch * setting.config.views
    D, I, towers = text.hidden_size, text.intermediate_size, towers_of(setting)
    count = setting.batch * setting.tokens * text.num_hidden_layers * (4 * 2 * D + 3 * (D + I))
    for C, M, _, blocks, tokens in towers:
        count += images * tokens * blocks * (4 * C + 2 * C + 2 * (C + M))
    C = sum(tower.width for tower in towers)
    return 2 * setting.rank * (count + images * setting.patches * (5 * C + (4 * C + D) + 2 * D))


def _teacher_operations(setting: Setting) -> int:
    if setting.teacher is None:
        return 0
    views, tokens, width = setting.config.views, teacher_tokens(setting), TEACHER["width"]
    linear = 2 * TEACHER["parameters"] * views * tokens
    # The patch embedding's blocks and half of the others attend within a view, the other half across.
    within, across = 2 * TEACHER["depth"] * views * tokens**2, TEACHER["depth"] * (views * tokens) ** 2
    return setting.batch * (linear + 4 * width * (within + across))
