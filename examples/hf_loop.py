"""Spatial Forcing in a plain Hugging Face training loop: a PaliGemma that writes actions as text tokens.

    train(model, batches, optimizer, load_teacher("vggt-1b"))

``model`` is a ``PaliGemmaForConditionalGeneration``; a batch holds what its processor makes (``input_ids``,
``attention_mask``, ``token_type_ids``, ``pixel_values``, ``labels``) and ``images_B3HW`` in [0, 1], the
images before the processor. Put LoRA on the language model first: full fine-tuning with alignment has been
reported to damage it. Other models differ in two places: which module ``host_of`` gets, and where the visual
tokens are.

tests/test_examples.py runs this on a small random model; it has not been run with real weights.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor

from spatial_forcing import Layout, SpatialForcing, host_of


def train(
    model: Any, batches: Iterable[dict[str, Tensor]], optimizer: Any, teacher: Any, weight: float = 0.5
) -> Iterator[dict[str, float]]:
    """Trains on every batch; yields the losses of each step."""
    vision = model.config.vision_config
    side = vision.image_size // vision.patch_size
    # PaliGemma's processor puts the image's tokens first and stretches the image to a square.
    host = host_of(
        model.model.language_model,
        layout=Layout(views=1, rows=side, cols=side),
        visual=slice(0, side * side),
    )
    sf = SpatialForcing(host, teacher, weight)
    optimizer.add_param_group({"params": sf.parameters()})
    for batch in batches:
        images_B3HW = batch.pop("images_B3HW")
        with sf.watch():
            action_loss = model(**batch).loss
        align_loss = sf(images_B3HW[:, None])
        (action_loss + align_loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        yield {"action": action_loss.item(), **{name: value.item() for name, value in sf.logs.items()}}
    sf.detach()


if __name__ == "__main__":
    raise SystemExit("This file holds train(...), to be called from a script of yours: see its first lines.")
