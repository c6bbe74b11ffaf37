"""Codecs: what is lost is what they say, and coefficients are as good a target as tokens."""

import pytest
import torch
import torch.nn.functional as F

from spatial_forcing.cache.codec import Codec, CodecOptions, fidelity_of, fit_codec
from spatial_forcing.errors import SpatialForcingError


def tokens(count: int, rank: int = 6, width: int = 48, noise: float = 0.02, seed: int = 0) -> torch.Tensor:
    """Tokens near a ``rank``-dimensional plane, away from zero, like a teacher's."""
    generator = torch.Generator().manual_seed(1)
    plane, mean = torch.randn(rank, width, generator=generator), torch.randn(width, generator=generator)
    generator.manual_seed(seed + 2)
    spread = torch.randn(count, rank, generator=generator) @ plane
    return 2 * mean + spread + noise * torch.randn(count, width, generator=generator)


def test_raw_loses_nothing_and_half_precision_next_to_nothing():
    x = tokens(100)
    for kind, worst in (("raw", 1e-12), ("float16", 1e-6)):
        codec = fit_codec(CodecOptions(kind), x, x)
        assert (1 - F.cosine_similarity(codec.decode(codec.encode(x)), x, dim=-1)).max() <= max(worst, 1e-6)
    assert torch.equal(Codec("raw", 48).decode(Codec("raw", 48).encode(x)), x)


def test_the_fewest_components_that_keep_the_fidelity_are_taken():
    codec = fit_codec(CodecOptions("pca-int8", fidelity=0.995), tokens(4000), tokens(500, seed=9))
    assert codec.components == 8  # the first on the ladder that covers six dimensions
    assert codec.report["cosine_mean"] >= 0.995
    assert [row["components"] for row in codec.report["curve"]] == [4, 8]
    assert codec.report["curve"][0]["cosine_mean"] < 0.995


def test_the_report_is_what_happens_to_other_frames():
    codec = fit_codec(CodecOptions("pca-int8", components=8), tokens(4000), tokens(500, seed=9))
    x = tokens(2000, seed=20)
    found = fidelity_of(codec, x, codec.mean_C)
    assert found["cosine_mean"] == pytest.approx(codec.report["cosine_mean"], abs=1e-3)
    assert found["gradient_error"] == pytest.approx(codec.report["gradient_error"], rel=0.2)
    assert codec.report["ratio_to_bf16"] == pytest.approx(2 * 48 / (8 + 2), abs=0.01)


def test_directions_are_orthonormal_so_cosines_of_coefficients_are_those_of_centred_tokens():
    x = tokens(3000)
    codec = fit_codec(CodecOptions("pca-int8", components=8), x, x)
    torch.testing.assert_close(codec.basis_CK.mT @ codec.basis_CK, torch.eye(8), atol=1e-5, rtol=0)
    stored = codec.encode(x)
    coefficients, decoded = codec.coefficients(stored), codec.decode(stored) - codec.mean_C
    ours = F.cosine_similarity(coefficients[:-1], coefficients[1:], dim=-1)
    theirs = F.cosine_similarity(decoded[:-1], decoded[1:], dim=-1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_a_token_does_not_depend_on_its_neighbours():
    x = tokens(300)
    codec = fit_codec(CodecOptions("pca-int8", components=8), x, x)
    together, alone = codec.decode(codec.encode(x)), codec.decode(codec.encode(x[7:8]))
    torch.testing.assert_close(together[7:8], alone, atol=1e-5, rtol=1e-5)
    huge = torch.cat([x, 1e4 * x[:1]])
    torch.testing.assert_close(codec.decode(codec.encode(huge))[:300], together, atol=1e-5, rtol=1e-5)


def test_tokens_equal_to_the_mean_and_constant_features_are_no_trouble():
    x = tokens(100)
    codec = fit_codec(CodecOptions("pca-int8", components=8), x, x)
    torch.testing.assert_close(codec.decode(codec.encode(codec.mean_C[None])), codec.mean_C[None])
    still = torch.ones(50, 48)
    codec = fit_codec(CodecOptions("pca-int8"), still, still)
    torch.testing.assert_close(codec.decode(codec.encode(still)), still, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "zip"}, "one of pca-int8, float16, raw"),
        ({"kind": "pca-int8", "fidelity": 1.5}, "between 0 and 1"),
        ({"kind": "pca-int8", "components": 0}, "at least one"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(SpatialForcingError, match=message):
        CodecOptions(**options)


def test_more_components_than_channels():
    with pytest.raises(SpatialForcingError, match="48 channels; 64 components"):
        fit_codec(CodecOptions("pca-int8", components=64), tokens(100), tokens(100))
