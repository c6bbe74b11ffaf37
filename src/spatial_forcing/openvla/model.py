"""OpenVLA and OpenVLA-OFT (arXiv 2406.09246, 2502.19645) as a module of our own on timm and transformers.

B: batch, V: views, N: tokens put in after the first (visual ones, then proprioception), T: text tokens (BOS,
prompt, action slots, stop, padding), L: N + T, D: width, S: action slots (K x A), K: chunk, A: numbers of an
action, P: numbers of the state.

The sequence: BOS | visual tokens of view 1, view 2, ... | proprioception | prompt | S action slots | stop |
padding. With parallel decoding the slots are zeros, attention goes both ways, and the action of a slot is
read one position before it, where a causal model would predict it.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from spatial_forcing.errors import MissingDependencyError
from spatial_forcing.grid import Layout
from spatial_forcing.openvla.config import OpenVLAConfig
from spatial_forcing.openvla.heads import ActionHead, Projector, ProprioProjector
from spatial_forcing.openvla.statistics import Statistics
from spatial_forcing.openvla.tokens import IGNORED, ActionTokens
from spatial_forcing.openvla.vision import VisionBackbone
from spatial_forcing.site import Host

# Ids of Llama 2's tokenizer: the empty token that stands between a prompt and its answer, and the end.
EMPTY, STOP = 29871, 2


@dataclass(frozen=True)
class Encoded:
    """A batch after the language model.

    Attributes:
        hidden_BLD: hidden states after the final norm.
        layers: the embeddings, then the hidden states after each block, the last after the final norm; None
            unless they were asked for.
        inserted_BND: what was put in after the first token: projected visual tokens, then proprioception.
        valid_BL: False at padding.
    """

    hidden_BLD: Tensor
    layers: tuple[Tensor, ...] | None
    inserted_BND: Tensor
    valid_BL: Tensor

    @property
    def predicting_BTD(self) -> Tensor:
        """Hidden states that predict the text tokens from the second on: T - 1 of them."""
        return self.hidden_BLD[:, self.inserted_BND.shape[1] : -1]


class Text(NamedTuple):
    """Prompts followed by action slots and stop, padded to one length.

    ids_BT (int64) are token ids; valid_BT is False at padding, slots_BT True at action slots; labels_BT are
    the ids at action slots and stop, and -100 elsewhere.
    """

    ids_BT: Tensor
    valid_BT: Tensor
    slots_BT: Tensor
    labels_BT: Tensor


class OpenVLA(nn.Module):
    """Vision-language-action model: fused vision backbone, projector, Llama, and OFT's heads where wanted.

    Args:
        config: sizes and variant; OpenVLA-7B with OFT's LIBERO recipe by default.
        attention: "sdpa" or "eager" for the language model.

    Raises:
        OpenVLAConfigError: the sizes are impossible.
        MissingDependencyError: timm or transformers is not installed.
    """

    def __init__(self, config: OpenVLAConfig | None = None, *, attention: str = "sdpa"):
        super().__init__()
        try:
            from transformers import LlamaForCausalLM
        except ImportError as error:
            raise MissingDependencyError("transformers", "openvla") from error
        c = self.config = config or OpenVLAConfig()
        llama = c.llama(attention)
        self.tokens = ActionTokens(c.vocabulary, c.bins)
        self.statistics = Statistics(c.norm_stats, c.normalisation)
        self.vision_backbone = VisionBackbone(c.towers, c.views, llama.hidden_size if c.film else None)
        self.projector = Projector(self.vision_backbone.width, llama.hidden_size)
        self.language_model: Any = LlamaForCausalLM(llama)
        self.proprio_projector = self.action_head = None
        if c.proprio_width is not None:
            self.proprio_projector = ProprioProjector(c.proprio_width, llama.hidden_size)
        if c.regression:
            self.action_head = ActionHead(llama.hidden_size, c.action_width)
            self.language_model.lm_head.requires_grad_(False)  # no loss of this variant reaches it

    @property
    def visual(self) -> slice:
        """Where the visual tokens of all views lie in the sequence."""
        return slice(1, 1 + self.config.views * self.vision_backbone.rows * self.vision_backbone.cols)

    def spatial_forcing_host(self) -> Host:
        """Host record: the visual tokens come after BOS, view by view."""
        vision, language = self.vision_backbone, self.language_model.model
        return Host(
            name="OpenVLA-OFT" if self.config.parallel else "OpenVLA",
            blocks=language.layers,
            final_norm=language.norm,
            width=language.config.hidden_size,
            layout=Layout(self.config.views, vision.rows, vision.cols),
            visual=self.visual,
        )

    # ---- one pass

    def forward(
        self,
        pixel_values_BCHW: Tensor,
        input_ids_BT: Tensor,
        mask_BT: Tensor | None = None,
        *,
        slots_BT: Tensor | None = None,
        proprio_BP: Tensor | None = None,
        layers: bool = False,
    ) -> Encoded:
        """Runs the language model over images, state and text.

        Args:
            pixel_values_BCHW: six channels per view; see `VisionBackbone`.
            input_ids_BT: token ids (int64), BOS first, padding at the end.
            mask_BT: False or 0 at padding; no padding by default.
            slots_BT: True at the action slots, as many in each sample as `config.slots`; needed with parallel
                decoding, where their embeddings become zeros, and not read without.
            proprio_BP: normalised state; needed if the configuration has proprioception.
            layers: whether to keep the hidden states of all layers.

        Raises:
            ValueError: a shape, the slots or the state do not fit the configuration.
        """
        valid_BT = torch.ones_like(input_ids_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        if len(pixel_values_BCHW) != len(input_ids_BT) or valid_BT.shape != input_ids_BT.shape:
            raise ValueError(
                f"Expected one batch, found {len(pixel_values_BCHW)} images, token ids of shape "
                f"{tuple(input_ids_BT.shape)} and a mask of shape {tuple(valid_BT.shape)}."
            )
        text_BTD = self._embed(input_ids_BT, slots_BT)
        language_BD = self._language(text_BTD, valid_BT, slots_BT)
        inserted_BND = self._inserted(pixel_values_BCHW, proprio_BP, language_BD).to(text_BTD.dtype)
        sequence_BLD = torch.cat([text_BTD[:, :1], inserted_BND, text_BTD[:, 1:]], dim=1)
        inserted_BN = valid_BT.new_ones(inserted_BND.shape[:2])
        valid_BL = torch.cat([valid_BT[:, :1], inserted_BN, valid_BT[:, 1:]], dim=1)
        found = self.language_model.model(
            inputs_embeds=sequence_BLD,
            attention_mask=self._mask(valid_BL, sequence_BLD.dtype),
            use_cache=False,
            output_hidden_states=layers,
        )
        return Encoded(found.last_hidden_state, found.hidden_states, inserted_BND, valid_BL)

    def _embed(self, input_ids_BT: Tensor, slots_BT: Tensor | None) -> Tensor:
        text_BTD = self.language_model.model.embed_tokens(input_ids_BT)
        if not self.config.parallel:
            return text_BTD
        return text_BTD.masked_fill(self._slots(slots_BT)[..., None], 0)

    def _slots(self, slots_BT: Tensor | None) -> Tensor:
        if slots_BT is None:
            raise ValueError("Decoding in parallel needs slots_BT: where the action slots are.")
        counts = slots_BT.sum(1).unique().tolist()
        if counts != [self.config.slots]:
            raise ValueError(f"Expected {self.config.slots} action slots in each sample, found {counts}.")
        if slots_BT[:, 0].any():
            raise ValueError("The first token of a sample is BOS; it cannot be an action slot.")
        return slots_BT

    def _language(self, text_BTD: Tensor, valid_BT: Tensor, slots_BT: Tensor | None) -> Tensor | None:
        """Mean embedding of a sample's text for FiLM, its slots left out.

        Public training averages padding too, which makes a sample depend on the others of its batch.
        """
        if not self.config.film:
            return None
        weight_BT1 = (valid_BT & ~self._slots(slots_BT))[..., None].to(text_BTD.dtype)
        return (text_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)

    def _inserted(
        self, pixel_values_BCHW: Tensor, proprio_BP: Tensor | None, language_BD: Tensor | None = None
    ) -> Tensor:
        visual_BND = self.projector(self.vision_backbone(pixel_values_BCHW, language_BD))
        if self.proprio_projector is None:
            return visual_BND
        expected = (len(visual_BND), self.config.proprio_width)
        if proprio_BP is None or tuple(proprio_BP.shape) != expected:
            found = None if proprio_BP is None else tuple(proprio_BP.shape)
            raise ValueError(f"Expected a proprioceptive state of shape {expected}, got {found}.")
        state_B1D = self.proprio_projector(proprio_BP).unsqueeze(1)
        return torch.cat([visual_BND, state_B1D.to(visual_BND.dtype)], dim=1)

    def _mask(self, valid_BL: Tensor, dtype: torch.dtype) -> Tensor:
        """The mask transformers takes: with four dimensions it is used as it is, with two made causal."""
        if not self.config.parallel:
            return valid_BL.long()
        full_B1LL = valid_BL[:, None, None].expand(-1, 1, valid_BL.shape[1], -1)
        if self.language_model.config._attn_implementation == "sdpa":
            return full_B1LL
        return torch.zeros_like(full_B1LL, dtype=dtype).masked_fill(~full_B1LL, torch.finfo(dtype).min)

    # ---- what comes out

    def slot_states(self, encoded: Encoded, slots_BT: Tensor) -> Tensor:
        """Hidden states hidden_BSD from which the action slots are read: one position before each."""
        slots_BT = self._slots(slots_BT)
        return encoded.predicting_BTD[slots_BT[:, 1:]].unflatten(0, (len(slots_BT), -1))

    def actions(self, encoded: Encoded, slots_BT: Tensor) -> Tensor:
        """Normalised actions_BKA of a pass in parallel: of the head, or of the likeliest tokens."""
        states_BSD = self.slot_states(encoded, slots_BT)
        if self.action_head is not None:
            return self.action_head(states_BSD)
        ids_BS = self.language_model.lm_head(states_BSD).argmax(-1)
        return self.tokens.decode(ids_BS).unflatten(1, (-1, self.config.action_width))

    def token_loss(self, encoded: Encoded, labels_BT: Tensor) -> Tensor:
        """Mean cross-entropy of the labelled tokens over the whole vocabulary, in float32.

        Args:
            encoded: a pass over the tokens.
            labels_BT: token ids; -100 where no loss is taken. Each is predicted one position earlier.
        """
        labels = labels_BT[:, 1:]
        counted = labels != IGNORED
        logits = self.language_model.lm_head(encoded.predicting_BTD[counted])
        return F.cross_entropy(logits.float(), labels[counted])

    def regression_loss(
        self, encoded: Encoded, slots_BT: Tensor, actions_BKA: Tensor, counted_BK: Tensor | None = None
    ) -> Tensor:
        """Mean absolute difference of the head's actions to the given ones, both normalised.

        Args:
            encoded, slots_BT: of a pass in parallel.
            actions_BKA: normalised.
            counted_BK: False at actions that have no loss; all count by default.
        """
        error_BK = (self.actions(encoded, slots_BT).float() - actions_BKA.float()).abs().mean(-1)
        if counted_BK is None:
            return error_BK.mean()
        return (error_BK * counted_BK).sum() / counted_BK.sum().clamp(min=1)

    # ---- prediction

    @torch.no_grad()
    def predict(
        self,
        pixel_values_BCHW: Tensor,
        prompt_BT: Tensor,
        mask_BT: Tensor | None = None,
        proprio_BP: Tensor | None = None,
    ) -> Tensor:
        """Predicts normalised actions_BKA.

        Args:
            pixel_values_BCHW, proprio_BP: as for `forward`.
            prompt_BT: token ids of the prompts alone, BOS first; the empty token after "Out:" is added where
                it is missing.
            mask_BT: False at padding, which is at the end.
        """
        valid_BT = torch.ones_like(prompt_BT, dtype=torch.bool) if mask_BT is None else mask_BT.bool()
        prompts = [ids[valid] for ids, valid in zip(prompt_BT, valid_BT, strict=True)]
        if not self.config.parallel:
            return self._decode(pixel_values_BCHW, [_answered(prompt) for prompt in prompts])
        ids_BT, valid_BT, slots_BT, _ = self.text(prompts)
        encoded = self(pixel_values_BCHW, ids_BT, valid_BT, slots_BT=slots_BT, proprio_BP=proprio_BP)
        return self.actions(encoded, slots_BT)

    def predict_action(
        self,
        pixel_values_BCHW: Tensor,
        prompt_BT: Tensor,
        mask_BT: Tensor | None = None,
        proprio_BP: Tensor | None = None,
        *,
        key: str | None = None,
    ) -> Tensor:
        """Predicts actions_BKA in the units of a data set; arguments as for `predict`.

        Args:
            key: un-normalisation key; None where the checkpoint has statistics of one data set.

        Raises:
            UnknownNameError, StatisticsError: see `Statistics.bounds`; before anything is computed.
        """
        bounds = self.statistics.bounds(key)
        return bounds.unnormalise(self.predict(pixel_values_BCHW, prompt_BT, mask_BT, proprio_BP).float())

    def text(self, prompts: list[Tensor], actions_BKA: Tensor | None = None) -> Text:
        """Builds the text of a batch.

        Args:
            prompts: token ids of each, BOS first; the empty token after "Out:" is added where it is missing.
            actions_BKA: normalised actions, whose tokens fill the slots; without, the slots and their labels
                are of no account, as their embeddings become zeros in parallel decoding.
        """
        slots, pad, prompts = self.config.slots, self.config.pad_token, [_answered(ids) for ids in prompts]
        filling_BS = prompts[0].new_full((len(prompts), slots), pad)
        if actions_BKA is not None:
            filling_BS = self.tokens.encode(actions_BKA).flatten(1)
        stop = prompts[0].new_tensor([STOP])
        rows = [torch.cat([ids, filling, stop]) for ids, filling in zip(prompts, filling_BS, strict=True)]
        ids_BT = pad_sequence(rows, batch_first=True, padding_value=pad)
        position_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        first_B1 = torch.tensor([[len(ids)] for ids in prompts], device=ids_BT.device)
        valid_BT, answer_BT = position_T <= first_B1 + slots, position_T >= first_B1
        slots_BT = answer_BT & (position_T < first_B1 + slots)
        return Text(ids_BT, valid_BT, slots_BT, ids_BT.masked_fill(~(answer_BT & valid_BT), IGNORED))

    def _decode(self, pixel_values_BCHW: Tensor, prompts: list[Tensor]) -> Tensor:
        """Greedy decoding token by token; prompts of one length share their passes."""
        ids: dict[int, Tensor] = {}
        for length in {len(prompt) for prompt in prompts}:
            rows = [row for row, prompt in enumerate(prompts) if len(prompt) == length]
            found_BA = self._decode_alike(
                pixel_values_BCHW[rows], torch.stack([prompts[row] for row in rows])
            )
            ids.update(zip(rows, found_BA, strict=True))
        return self.tokens.decode(torch.stack([ids[row] for row in range(len(prompts))])[:, None])

    def _decode_alike(self, pixel_values_BCHW: Tensor, prompt_BT: Tensor) -> Tensor:
        text_BTD = self._embed(prompt_BT, None)
        inserted_BND = self._inserted(pixel_values_BCHW, None).to(text_BTD.dtype)
        embedded, past, ids = torch.cat([text_BTD[:, :1], inserted_BND, text_BTD[:, 1:]], dim=1), None, []
        for _ in range(self.config.action_width):
            found = self.language_model.model(inputs_embeds=embedded, past_key_values=past, use_cache=True)
            past = found.past_key_values
            ids.append(self.language_model.lm_head(found.last_hidden_state[:, -1]).argmax(-1))
            embedded = self._embed(ids[-1][:, None], None)
        return torch.stack(ids, dim=1)


def _answered(prompt_T: Tensor) -> Tensor:
    """A prompt that ends in the empty token, as in training."""
    return prompt_T if prompt_T[-1] == EMPTY else torch.cat([prompt_T, prompt_T.new_tensor([EMPTY])])
