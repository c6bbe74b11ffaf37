"""OpenVLA: equality with the reference tensors, and the laws that its model obeys."""

import json
from dataclasses import replace

import pytest
import torch
from reference import reference
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from spatial_forcing.errors import UnknownNameError
from spatial_forcing.openvla.config import (
    DINOV2,
    PLAIN,
    SIGLIP,
    SMALL,
    NotBuiltError,
    OpenVLAConfig,
    OpenVLAConfigError,
    Tower,
)
from spatial_forcing.openvla.layout import own_name
from spatial_forcing.openvla.model import OpenVLA

PROMPT = ((1, 4419, 13587, 26162, 22600), (1, 13511, 2338))


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def case(request) -> tuple[OpenVLA, dict[str, Tensor]]:
    with safe_open(reference("openvla_oft/openvla_oft_mini.safetensors"), "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        told, statistics = (json.loads(file.metadata()[key]) for key in ("cfg", "norm_stats"))
    towers = (
        Tower(DINOV2, told["image"], arguments=told["dino"]),
        Tower(SIGLIP, told["image"], arguments={**told["siglip"], "mlp_ratio": 4.0}),
    )
    config = OpenVLAConfig(towers, told["llama"], norm_stats={"mini": {"action": statistics}})
    model = OpenVLA(config, attention=request.param).eval()
    names = {
        name: name.removeprefix("weights.").removeprefix("vla.") for name in tensors if "weights." in name
    }
    model.load_state_dict({own_name(ours): tensors[name] for name, ours in names.items()})
    return model, tensors


@pytest.fixture(scope="module")
def small() -> OpenVLA:
    return built(SMALL)


def built(config: OpenVLAConfig, attention: str = "sdpa") -> OpenVLA:
    """A model whose parts all matter: no weight is so small that a change would be lost."""
    torch.manual_seed(0)
    model = OpenVLA(config, attention=attention).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            torch.nn.init.ones_(parameter)
        elif parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3 if "vision" in name else 0.1)
    return model


def batch(model: OpenVLA, lengths: tuple[int, ...] = (5, 3)) -> dict[str, Tensor]:
    """A training batch: prompts of other lengths, action slots, stop, padding."""
    random, config = torch.Generator().manual_seed(1), model.config
    prompts = [torch.tensor(PROMPT[0][:length]) for length in lengths]
    ids_BT, valid_BT, slots_BT, _ = model.text(prompts)
    state = (
        {} if config.proprio_width is None else {"proprio_BP": torch.randn(len(lengths), 8, generator=random)}
    )
    size = (len(lengths), 6 * config.views, 28, 28)
    pixels = torch.randn(size, generator=random)
    return {
        "pixel_values_BCHW": pixels,
        "input_ids_BT": ids_BT,
        "mask_BT": valid_BT,
        "slots_BT": slots_BT,
        **state,
    }


def close(found: Tensor, expected: Tensor) -> None:
    """Equality to 1e-5 of the largest value."""
    assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item(), check_dtype=False)


# ----------------------------------------------------------------------------------------------- reference


@torch.no_grad()
def test_every_tensor_equals_the_reference(case):
    model, t = case
    slots_BT = model.tokens.are_actions(t["input.labels"])
    encoded = model(
        t["input.pixel_values"],
        t["input.input_ids"],
        t["input.attention_mask"],
        slots_BT=slots_BT,
        proprio_BP=t["input.proprio"],
        layers=True,
    )
    close(model.vision_backbone(t["input.pixel_values"]), t["output.vision_backbone"])
    close(encoded.inserted_BND, t["output.projector_features"])
    assert len(encoded.layers) == 7
    for i, hidden_BLD in enumerate(encoded.layers):
        close(hidden_BLD, t[f"output.hidden_{i}"])
    assert torch.equal(encoded.layers[-1], encoded.hidden_BLD)
    close(model.actions(encoded, slots_BT), t["output.actions_normalised"])
    close(model.token_loss(encoded, t["input.labels"])[None], t["output.loss"])
    assert torch.equal(encoded.inserted_BND[:, :-1], encoded.layers[0][:, model.visual])


def test_a_prediction_equals_the_reference(case):
    model, t = case
    inputs = (t["input.pixel_values"], t["input.prompt"], None, t["input.proprio"])
    both = model.predict_action(*inputs)
    close(both[0], t["output.predict_action_sample0"])
    alone = [None if x is None else x[:1] for x in inputs]
    close(model.predict_action(*alone, key="mini")[0], t["output.predict_action_sample0"])  # type: ignore[arg-type]
    with pytest.raises(UnknownNameError, match=r"un-normalisation key 'mina'. Did you mean 'mini'"):
        model.predict_action(*inputs, key="mina")


def test_the_defaults_are_the_released_7b():
    with torch.device("meta"):
        plain, oft = OpenVLA(OpenVLAConfig(**PLAIN)), OpenVLA()  # type: ignore[arg-type]
    # Public fine-tuning prints 7,652,065,472 parameters, 110,828,288 of them of its adapters.
    assert sum(p.numel() for p in plain.parameters()) == 7_652_065_472 - 110_828_288
    own = ("action_head", "proprio_projector")
    assert {n for n in oft.state_dict() if not n.startswith(own)} == plain.state_dict().keys()
    assert (oft.vision_backbone.rows, oft.vision_backbone.cols, oft.visual.stop) == (16, 16, 513)


# ---------------------------------------------------------------------------------------------------- laws


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, replace(SMALL, film=True)], ids=["plain", "film"])
def test_padding_changes_nothing(config):
    model = built(config)
    inputs = batch(model)
    slots_BT = inputs["slots_BT"]
    expected = model(**inputs)
    wider = {n: torch.nn.functional.pad(inputs[n], (0, 3)) for n in ("input_ids_BT", "mask_BT", "slots_BT")}
    wider["input_ids_BT"][~wider["mask_BT"]] = 17  # whatever stands there
    found = model(**{**inputs, **wider})
    valid_BL = expected.valid_BL
    close(found.hidden_BLD[:, :-3][valid_BL], expected.hidden_BLD[valid_BL])
    close(model.actions(found, wider["slots_BT"]), model.actions(expected, slots_BT))
    alone = {n: x[1:] for n, x in inputs.items()}
    width = int(alone["mask_BT"].sum())
    alone |= {n: alone[n][:, :width] for n in wider}
    close(model.actions(model(**alone), alone["slots_BT"]), model.actions(expected, slots_BT)[1:])


@torch.no_grad()
def test_the_order_of_samples_changes_nothing(small):
    inputs = batch(small)
    turned = {name: tensor.flip(0) for name, tensor in inputs.items()}
    close(small(**turned).hidden_BLD.flip(0), small(**inputs).hidden_BLD)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("parallel", [True, False])
def test_attention_goes_both_ways_with_parallel_decoding_alone(parallel, attention):
    model = built(SMALL if parallel else replace(SMALL, **PLAIN), attention)
    inputs = batch(model, (5, 5))
    changed = {**inputs, "input_ids_BT": inputs["input_ids_BT"].clone()}
    changed["input_ids_BT"][:, 4] = 99
    place = 4 + model(**inputs).inserted_BND.shape[1]
    before, after = (model(**x).hidden_BLD[:, :place] for x in (inputs, changed))
    assert ((before - after).abs().amax(dim=(0, 2)) > 1e-6).all() == parallel
    if not parallel:
        close(after, before)


def test_text_is_prompt_empty_token_actions_stop_padding(small):
    actions = torch.linspace(-1, 1, 28).view(2, 2, 7)
    ids_BT, valid_BT, slots_BT, labels_BT = small.text([torch.tensor(p) for p in PROMPT], actions)
    for row, prompt in enumerate(PROMPT):
        answer = [*small.tokens.encode(actions[row]).flatten().tolist(), 2]
        whole = [*prompt, 29871, *answer]
        assert ids_BT[row].tolist() == whole + [32000] * (21 - len(whole))
        assert valid_BT[row].sum() == len(whole)
        assert labels_BT[row].tolist() == [-100] * (len(prompt) + 1) + answer + [-100] * (21 - len(whole))
        assert ids_BT[row][slots_BT[row]].tolist() == answer[:-1]
    assert small.text([torch.tensor([*PROMPT[0], 29871])]).ids_BT.shape[1] == 21


@torch.no_grad()
def test_the_ids_of_action_slots_are_not_seen_and_their_places_are(small):
    inputs = batch(small)
    other = {**inputs, "input_ids_BT": inputs["input_ids_BT"].masked_fill(inputs["slots_BT"], 31800)}
    assert torch.equal(small(**other).hidden_BLD, small(**inputs).hidden_BLD)
    actions = small.actions(small(**inputs), inputs["slots_BT"])
    assert (actions[:, 0] - actions[:, 1]).abs().max() > 1e-4


@torch.no_grad()
def test_vision_is_that_of_the_second_to_last_block_view_by_view(small):
    pixels = batch(small)["pixel_values_BCHW"]
    expected = small.vision_backbone(pixels)
    model = built(SMALL)
    for parameter in model.vision_backbone.unused():
        parameter.zero_()
    assert torch.equal(model.vision_backbone(pixels), expected)
    swapped = small.vision_backbone(pixels.roll(6, dims=1))
    close(swapped, expected.roll(4, dims=1))
    siglip = pixels.clone()
    siglip[:, 3:6] += 1
    changed = (small.vision_backbone(siglip) - expected).abs().amax(dim=0) > 1e-6
    assert changed[:4, 16:].all()
    assert changed.sum() == changed[:4, 16:].numel()


def test_pixel_values_are_normalised_for_each_tower(small):
    images_BV3HW = torch.rand(2, 2, 3, 28, 28)
    pixels = small.vision_backbone.pixel_values(images_BV3HW)
    assert pixels.shape == (2, 12, 28, 28)
    assert_close(pixels[:, 9:12], (images_BV3HW[:, 1] - 0.5) / 0.5)
    assert_close(pixels[:, 6], (images_BV3HW[:, 1, 0] - 0.485) / 0.229)


@torch.no_grad()
def test_film_is_nothing_with_zeros_and_tells_the_tokens_the_text():
    model, plain = built(replace(SMALL, film=True)), built(SMALL)
    inputs = batch(plain, (5, 5))
    other = {**inputs, "input_ids_BT": inputs["input_ids_BT"].clone()}
    other["input_ids_BT"][:, 2] = 99
    visual = plain.visual
    assert torch.equal(plain(**inputs).inserted_BND, plain(**other).inserted_BND)
    assert (model(**inputs).inserted_BND - model(**other).inserted_BND)[:, : visual.stop - 1].abs().min() > 0
    names = [n for n, _ in model.named_parameters() if ".scale." in n or ".shift." in n]
    assert len(names) == 2 * 2 * 2 * 3
    state = {
        n.replace("blocks.", "blocks.").replace(".block.", "."): p for n, p in model.state_dict().items()
    }
    plain.load_state_dict({n: p for n, p in state.items() if ".scale." not in n and ".shift." not in n})
    for name in names:
        model.get_parameter(name).zero_()
    close(model(**inputs).hidden_BLD, plain(**inputs).hidden_BLD)


@pytest.mark.parametrize(
    "config",
    [
        SMALL,
        replace(SMALL, film=True),
        replace(SMALL, **PLAIN),
        replace(SMALL, regression=False, proprio_width=None),
    ],
    ids=["regression", "film", "plain", "discrete in parallel"],
)
def test_gradient_reaches_every_trainable_parameter(config):
    model = built(config)
    actions = torch.randn(2, config.chunk, 7)
    ids_BT, *_, labels_BT = model.text([torch.tensor(prompt) for prompt in PROMPT], actions)
    inputs = {**batch(model), "input_ids_BT": ids_BT}
    encoded = model(**inputs)
    if config.regression:
        loss = model.regression_loss(encoded, inputs["slots_BT"], actions)
    else:
        loss = model.token_loss(encoded, labels_BT)
    loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    still = {n for n, p in model.named_parameters() if not p.requires_grad}
    last = {f"vision_backbone.{f}.blocks.2" for f in ("featurizer", "fused_featurizer")}
    assert all(
        n.startswith(tuple(last)) or ".norm." in n or "attn_pool" in n or "lm_head" in n for n in still
    )
    assert ("language_model.lm_head.weight" in still) == config.regression


def test_decoding_token_by_token_is_the_likeliest_token_of_one_pass():
    model = built(replace(SMALL, **PLAIN))
    pixels, prompts = batch(model)["pixel_values_BCHW"], [torch.tensor(p) for p in PROMPT]
    padded = torch.nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=32000)
    found = model.predict(pixels, padded, padded != 32000)
    assert found.shape == (2, 1, 7)
    for row, prompt in enumerate(prompts):
        ids = torch.cat([prompt, torch.tensor([29871])])
        for _ in range(7):
            last = model(pixels[row : row + 1], ids[None]).hidden_BLD[0, -1]
            ids = torch.cat([ids, model.language_model.lm_head(last).argmax()[None]])
        assert torch.equal(found[row, 0], model.tokens.decode(ids[-7:]))


def test_parts_may_have_dtypes_of_their_own(small):
    model = built(SMALL)
    model.action_head.double()
    model.proprio_projector.double()
    inputs = batch(small)
    found = model.actions(model(**inputs), inputs["slots_BT"])
    assert found.dtype == torch.float64
    close(found, small.actions(small(**inputs), inputs["slots_BT"]))


# ------------------------------------------------------------------------------------------------- requests


def test_wrong_configurations_are_refused():
    with pytest.raises(OpenVLAConfigError, match="chunk must be a whole number from 1 to 1,000,000, got 0"):
        replace(SMALL, chunk=0)
    with pytest.raises(OpenVLAConfigError, match="expected regression=False, chunk=1"):
        replace(SMALL, parallel=False)
    with pytest.raises(NotBuiltError, match="two fused vision towers, found 1"):
        replace(SMALL, towers=SMALL.towers[:1])
    with pytest.raises(UnknownNameError, match="normalisation"):
        replace(SMALL, normalisation="q98")
    with pytest.raises(OpenVLAConfigError, match="timm cannot build the vision tower 'vit_nothing'"):
        OpenVLA(replace(SMALL, towers=(SMALL.towers[0], Tower("vit_nothing", 28))))
    with pytest.raises(OpenVLAConfigError, match=r"one grid of patches.*\(2, 2\) and \(4, 4\)"):
        OpenVLA(replace(SMALL, towers=(SMALL.towers[0], replace(SMALL.towers[1], image_size=56))))
    with pytest.raises(OpenVLAConfigError, match="must be 'llama', found 'phi'"):
        OpenVLA(replace(SMALL, text_config={"model_type": "phi"}))
    with pytest.raises(OpenVLAConfigError, match="not one of a Llama"):
        OpenVLA(replace(SMALL, text_config={"hidden_size": 33, "num_attention_heads": 2}))
    with pytest.raises(UnknownNameError, match="sdpa"):
        OpenVLA(SMALL, attention="flash_attention_2")


@torch.no_grad()
def test_wrong_inputs_are_refused(small):
    inputs = batch(small)
    for changed, words in (
        ({"slots_BT": None}, "needs slots_BT"),
        ({"slots_BT": inputs["mask_BT"]}, "Expected 14 action slots in each sample"),
        ({"proprio_BP": None}, r"Expected a proprioceptive state of shape \(2, 8\), got None"),
        ({"proprio_BP": torch.zeros(2, 7)}, r"got \(2, 7\)"),
        ({"pixel_values_BCHW": torch.zeros(2, 6, 28, 28)}, r"\(batch, 12, 28, 28\).*got \(2, 6, 28, 28\)"),
        ({"mask_BT": inputs["mask_BT"][:, 1:]}, "Expected one batch"),
    ):
        with pytest.raises(ValueError, match=words):
            small(**{**inputs, **changed})
