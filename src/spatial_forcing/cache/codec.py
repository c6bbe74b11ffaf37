"""Compression of teacher features: principal components in int8 with a scale per token, or plain floats.

    code = round(W^T (x - m) / s),   s = max |W^T (x - m)| / 127 per token,   x ~ m + s W code

m: mean of the tokens of a sample, W: their first k principal directions (orthonormal), so that lengths and
angles among coefficients are those among what they stand for. k is the smallest that keeps the wanted mean
cosine on frames that were not in the sample.

Shapes: N tokens, C channels of the teacher, K components.
"""

from dataclasses import asdict, dataclass, field, replace
from numbers import Integral, Real
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from spatial_forcing.errors import SpatialForcingError

Kind = Literal["pca-int8", "float16", "raw"]
KINDS: tuple[str, ...] = ("pca-int8", "float16", "raw")
LADDER = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 160, 192, 224, 256, 320, 384, 512, 768, 1024)
LEAST_SCALE = 1e-12


@dataclass(frozen=True)
class CodecOptions:
    """Storage options of features: the kind of codec and its size.

    Args:
        kind: "pca-int8", "float16", or "raw" (float32, for checks).
        components: K; chosen by ``fidelity`` if None.
        fidelity: mean cosine between stored and raw tokens that K has to keep.
    """

    kind: Kind = "float16"
    components: int | None = None
    fidelity: float = 0.99

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise SpatialForcingError(f"The codec is one of {', '.join(KINDS)}; got {self.kind!r}.")
        if not isinstance(self.fidelity, Real) or not 0 < self.fidelity < 1:
            raise SpatialForcingError(f"The fidelity is between 0 and 1; got {self.fidelity!r}.")
        if self.components is not None and (not isinstance(self.components, Integral) or self.components < 1):
            raise SpatialForcingError(f"The codec needs at least one component; got {self.components!r}.")


@dataclass
class Codec:
    """Encoder and decoder of stored tokens.

    Attributes:
        kind: see :class:`CodecOptions`.
        width: C.
        mean_C, basis_CK: m and W; None for plain floats.
        report: what is lost, measured on held-out frames: see :func:`fidelity_of`.
    """

    kind: Kind
    width: int
    mean_C: Tensor | None = None
    basis_CK: Tensor | None = None
    report: dict[str, Any] = field(default_factory=dict)

    @property
    def components(self) -> int:
        """Numbers stored per token."""
        return self.width if self.basis_CK is None else self.basis_CK.shape[1]

    @property
    def bytes_per_token(self) -> int:
        return {"pca-int8": self.components + 2, "float16": 2 * self.width, "raw": 4 * self.width}[self.kind]

    def encode(self, tokens: Tensor) -> dict[str, Tensor]:
        """Encodes tokens (..., C) as tensors of a shard: ``codes`` (..., K) and, in int8, ``scale`` (...)."""
        tokens = tokens.float()
        if self.mean_C is None or self.basis_CK is None:
            return {"codes": tokens.to(torch.float16 if self.kind == "float16" else torch.float32)}
        coefficients = (tokens - self.mean_C) @ self.basis_CK
        # The scale is stored in half precision, so it is what the codes must be made with.
        scale = (coefficients.abs().amax(-1) / 127).clamp(min=6.2e-5).to(torch.float16)
        codes = (coefficients / scale.float()[..., None]).round().clamp(-127, 127).to(torch.int8)
        return {"codes": codes, "scale": scale}

    def coefficients(self, stored: dict[str, Tensor]) -> Tensor:
        """The stored numbers in float32 (..., K): PCA coefficients, or the tokens."""
        codes = stored["codes"].float()
        return codes * stored["scale"].float()[..., None] if "scale" in stored else codes

    def decode(self, stored: dict[str, Tensor]) -> Tensor:
        """Decodes stored tensors to tokens (..., C), float32."""
        coefficients = self.coefficients(stored)
        if self.basis_CK is None or self.mean_C is None:
            return coefficients
        return coefficients @ self.basis_CK.mT + self.mean_C

    def to(self, device: torch.device) -> "Codec":
        """The same codec for tensors on another device."""
        if self.mean_C is None or self.basis_CK is None or self.mean_C.device == device:
            return self
        return replace(self, mean_C=self.mean_C.to(device), basis_CK=self.basis_CK.to(device))

    def tensors(self) -> dict[str, Tensor]:
        """The codec's tensors, for a file."""
        found = {"mean": self.mean_C, "basis": self.basis_CK}
        return {name: tensor.contiguous() for name, tensor in found.items() if tensor is not None}


def fit_codec(options: CodecOptions, sample_NC: Tensor, heldout_NC: Tensor) -> Codec:
    """Fits a codec on a sample of features.

    Args:
        options: what is wanted.
        sample_NC: tokens to find the components from.
        heldout_NC: tokens of other frames, to choose K and to measure what is lost.

    Raises:
        SpatialForcingError: more components than channels were asked for.
    """
    width = sample_NC.shape[1]
    sample, heldout = sample_NC.double(), heldout_NC.float()
    if options.kind != "pca-int8":
        codec = Codec(options.kind, width)
        codec.report = fidelity_of(codec, heldout, sample.mean(0).float())
        return codec
    if options.components is not None and options.components > width:
        raise SpatialForcingError(
            f"The features have {width} channels; {options.components} components cannot be found in them."
        )
    mean_C = sample.mean(0)
    centred = sample - mean_C
    variance_C, directions_CC = torch.linalg.eigh(centred.mT @ centred / len(sample))
    variance_C, directions_CC = variance_C.flip(0).clamp(min=0), directions_CC.flip(1)
    # A direction's sign is arbitrary; fixing it makes the file the same wherever it is computed alike.
    signs = directions_CC.gather(0, directions_CC.abs().argmax(0, keepdim=True)).sign()
    directions_CC = (directions_CC * signs).float()

    def codec_of(k: int) -> Codec:
        codec = Codec("pca-int8", width, mean_C.float(), directions_CC[:, :k])
        explained = (variance_C[:k].sum() / variance_C.sum().clamp(min=LEAST_SCALE)).item()
        codec.report = {"explained_variance": round(explained, 5)}
        codec.report |= fidelity_of(codec, heldout, mean_C.float())
        return codec

    if options.components is not None:
        return codec_of(options.components)
    curve, codec = [], None
    for k in [k for k in LADDER if k < width] + [width]:
        codec = codec_of(k)
        curve.append({"components": k, **codec.report})
        if codec.report["cosine_mean"] >= options.fidelity:
            break
    assert codec is not None
    codec.report["curve"] = curve
    return codec


def fidelity_of(codec: Codec, heldout_NC: Tensor, mean_C: Tensor) -> dict[str, float]:
    """Reconstruction quality of a codec: cosines and errors of stored tokens against raw ones.

    Cosines as they are, and with the mean taken from both: teacher tokens share a large component that makes
    any two alike. ``ratio_to_bf16`` is how much smaller a token is than in bfloat16. ``loss_error`` and
    ``gradient_error`` are relative, of the alignment loss toward the centred tokens and of its gradient, for
    random projections: what training would notice at its start.
    """
    stored = codec.decode(codec.encode(heldout_NC))
    cosine = F.cosine_similarity(stored, heldout_NC, dim=-1)
    raw_centred, stored_centred = heldout_NC - mean_C, stored - mean_C
    centred = F.cosine_similarity(stored_centred, raw_centred, dim=-1)
    loss, gradient = _loss_and_gradient(raw_centred)
    stored_loss, stored_gradient = _loss_and_gradient(stored_centred)
    numbers = {
        "cosine_mean": cosine.mean(),
        "cosine_worst": cosine.min(),
        "cosine_centred_mean": centred.mean(),
        "cosine_centred_worst": centred.min(),
        "loss_error": (stored_loss - loss).abs() / loss,
        "gradient_error": (stored_gradient - gradient).norm() / gradient.norm(),
    }
    return {name: round(value.item(), 6) for name, value in numbers.items()} | {
        "ratio_to_bf16": round(2 * codec.width / codec.bytes_per_token, 2)
    }


def _loss_and_gradient(target_NC: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    projected = torch.randn(target_NC.shape, generator=generator).requires_grad_()
    with torch.enable_grad():
        loss = (1 - F.cosine_similarity(projected, target_NC, dim=-1)).mean()
        (gradient,) = torch.autograd.grad(loss, projected)
    return loss.detach(), gradient


def codec_from(saved: dict[str, Any], tensors: dict[str, Tensor]) -> Codec:
    """Restores a codec from a manifest and its file."""
    return Codec(saved["kind"], saved["width"], tensors.get("mean"), tensors.get("basis"), saved["report"])


def codec_record(codec: Codec, options: CodecOptions) -> dict[str, Any]:
    """The manifest entry of a codec."""
    return {
        "kind": codec.kind,
        "width": codec.width,
        "components": codec.components,
        "bytes_per_token": codec.bytes_per_token,
        "options": asdict(options),
        "report": codec.report,
    }
