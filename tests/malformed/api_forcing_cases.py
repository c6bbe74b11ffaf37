"""The Python API, hosts, grids and alignments: what raw torch errors would say badly, or not at all.

Shapes: B batch, V views, H W rows and columns or pixels, C channels.
"""

import math
from typing import Any

import torch
from torch import nn

from malformed.call import TEACHER, given, vla
from malformed.case import Case, api
from spatial_forcing import (
    Features,
    Layout,
    Projector,
    SpatialForcing,
    Tap,
    cosine_distance,
    host_of,
    load_teacher,
    resample,
)
from spatial_forcing.hosts.tiny import TinyVLA, hash_words
from spatial_forcing.uv import uv_position_embedding


def decoder(width: int = 8) -> nn.Module:
    """What is recognised as a plain decoder."""
    block = nn.Module()
    block.input_layernorm = nn.LayerNorm(width)
    model = nn.Module()
    model.layers, model.norm = nn.ModuleList([block]), nn.LayerNorm(width)
    return model


def features(*shape: int, valid: tuple[int, ...] | None = None) -> Features:
    return Features(torch.ones(*shape), torch.ones(valid or shape[:4], dtype=torch.bool))


def forced(**options: Any) -> SpatialForcing:
    return SpatialForcing(host_of(vla()), load_teacher(TEACHER), **options)


def aligned(given: Any, *more: Any, **options: Any) -> Any:
    """The loss of a watched forward of two samples."""
    model = vla()
    sf = SpatialForcing(host_of(model), load_teacher(TEACHER))
    words = hash_words(["go"] * 2, model.vocabulary, model.max_words)
    with sf.watch():
        model(torch.rand(2, 2, 3, 28, 28), words, torch.zeros(2, 4))
    return sf(given() if callable(given) else given, *more, **options)


class NoHost(nn.Module):
    def spatial_forcing_host(self) -> str:
        return "a host"


class Wide:
    """A teacher of an odd width."""

    width, fingerprint, licence = 7, "f", "none"


HOSTS = [
    api("host_of", kind, what, given(call), says)
    for kind, what, call, says in (
        ("foreign", "a linear layer", lambda: host_of(nn.Linear(2, 2)), "Linear is not a host I know"),
        ("type", "None", lambda: host_of(None), "host_of takes a model, a torch.nn.Module; got NoneType"),
        ("type", "5", lambda: host_of(5), "host_of takes a model, a torch.nn.Module; got int"),
        ("type", "a path", lambda: host_of("policy"), "got str"),
        ("foreign", "wrong record", lambda: host_of(NoHost()), "must return a spatial_forcing.Host, got str"),
        ("size", "two decoders", lambda: host_of(nn.ModuleList([decoder(), decoder()])), "holds 2 decoders"),
        ("missing", "no layout", lambda: host_of(decoder()), "does not know where its visual tokens are"),
        (
            "type",
            "visual as a list",
            lambda: host_of(decoder(), layout=Layout(1, 2, 2), visual=[0, 4]),
            "visual is a slice or a function",
        ),
        (
            "type",
            "layout as a tuple",
            lambda: host_of(decoder(), layout=(1, 2, 2), visual=slice(0, 4)),
            "layout is a spatial_forcing.Layout; got tuple",
        ),
        ("number", "layer 0", lambda: Tap(host_of(vla()), 0), "the layer must be 1 to 4, got 0"),
        ("number", "layer 99", lambda: Tap(host_of(vla()), 99), "must be 1 to 4, got 99"),
        ("number", "layer -1", lambda: Tap(host_of(vla()), -1), "must be 1 to 4, got -1"),
        ("type", "layer 'deep'", lambda: Tap(host_of(vla()), "deep"), "must be 1 to 4, got 'deep'"),
        ("type", "tap of a model", lambda: Tap(vla()), "takes a Host"),
        ("missing", "nothing watched", lambda: Tap(host_of(vla())).visual_BND(), "never fired"),
        ("number", "image size 30", lambda: TinyVLA(image_size=30), "not a multiple of the patch size"),
        ("number", "heads 3", lambda: TinyVLA(width=32, heads=3), "multiple of heads"),
        ("number", "patch 0", lambda: TinyVLA(patch=0), "at least 1"),
        ("number", "depth 0", lambda: TinyVLA(depth=0), "at least 1"),
    )
]

GRIDS = [
    api("grid", kind, what, given(call), says)
    for kind, what, call, says in (
        ("number", "layout without rows", lambda: Layout(1, 0, 4), "at least one view, row and column"),
        ("number", "negative views", lambda: Layout(-1, 4, 4), "at least one view, row and column"),
        ("type", "rows of a half", lambda: Layout(1, 2.5, 4), "whole numbers"),
        ("type", "rows as text", lambda: Layout(1, "2", 4), "whole numbers"),
        ("name", "fit 'crop'", lambda: Layout(1, 2, 2, fit="crop"), "'stretch' or 'pad', got 'crop'"),
        ("size", "tokens of a flat shape", lambda: features(2, 4, 8, valid=(2, 4)).checked(), "need tokens"),
        ("size", "mask of others", lambda: features(1, 1, 2, 2, 4, valid=(1, 1, 2, 3)).checked(), "mask of"),
        (
            "type",
            "a mask of numbers",
            lambda: Features(torch.ones(1, 1, 2, 2, 4), torch.ones(1, 1, 2, 2)).checked(),
            "bool mask",
        ),
        (
            "type",
            "whole tokens",
            lambda: Features(
                torch.ones(1, 1, 2, 2, 4, dtype=torch.long), torch.ones(1, 1, 2, 2) > 0
            ).checked(),
            "floating tokens",
        ),
        ("number", "no rows", lambda: resample(features(1, 1, 2, 2, 4), 0, 2), "at least one row and column"),
        ("number", "rows < 0", lambda: resample(features(1, 1, 2, 2, 4), -1, 2), "at least one row"),
        ("type", "half rows", lambda: resample(features(1, 1, 2, 2, 4), 1.5, 2), "whole numbers"),
        ("type", "a tensor", lambda: resample(torch.ones(1, 1, 2, 2, 4), 2, 2), "takes Features"),
        (
            "size",
            "affine of 3 x 3",
            lambda: resample(features(1, 1, 2, 2, 4), 2, 2, torch.eye(3)),
            "Expected an affine of shape (2, 3)",
        ),
        (
            "number",
            "affine in pixels",
            lambda: resample(features(1, 1, 2, 2, 4), 2, 2, 100 * torch.eye(3)[:2]),
            "not in pixels",
        ),
        (
            "number",
            "affine of NaN",
            lambda: resample(features(1, 1, 2, 2, 4), 2, 2, torch.full((2, 3), math.nan)),
            "affine",
        ),
        (
            "name",
            "published with an affine",
            lambda: resample(features(1, 1, 2, 2, 4), 2, 2, torch.eye(3)[:2], published=True),
            "knows no affine",
        ),
        ("number", "uv of no rows", lambda: uv_position_embedding(0, 2, 4), "at least one row and column"),
        ("number", "uv of 6 channels", lambda: uv_position_embedding(2, 2, 6), "multiple of 4"),
    )
]
GRIDS = [
    Case(**{**vars(case), "error": ValueError}) if case.name.startswith("grid: uv") else case
    for case in GRIDS
]

FORCING = [
    api("SpatialForcing", kind, what, given(call), says)
    for kind, what, call, says in (
        ("number", "weight -1", lambda: forced(weight=-1), "0 or more"),
        ("number", "weight NaN", lambda: forced(weight=math.nan), "nan"),
        ("number", "weight infinite", lambda: forced(weight=math.inf), "inf"),
        (
            "name",
            "weight as a word",
            lambda: forced(weight="much"),
            "Unknown schedule (and no number) 'much'",
        ),
        ("missing", "half a schedule", lambda: forced(weight="linear:initial=1"), "does not say final, end"),
        ("name", "loss 'cosin'", lambda: forced(loss="cosin"), "Did you mean 'cosine'"),
        ("name", "site 'layers.2'", lambda: forced(site="layers.2"), "It has blocks.0 to blocks.4"),
        (
            "missing",
            "site in vision",
            lambda: forced(site="vision.-1"),
            "does not describe its vision encoder",
        ),
        ("missing", "no alignment", lambda: SpatialForcing(host_of(vla()), []), "holds at least one"),
        ("type", "a list of teachers", lambda: SpatialForcing(host_of(vla()), [Wide()]), "Alignment records"),
        ("number", "position embedding 5", lambda: forced(position_embedding=5), "5"),
        ("number", "position embedding NaN", lambda: forced(position_embedding=math.nan), "nan"),
        ("name", "norm 'instance'", lambda: forced(norm="instance"), "'layer' or 'batch', got 'instance'"),
        ("name", "site blocks.99", lambda: forced(site="blocks.99"), "has no site 'blocks.99'"),
        ("type", "no teacher", lambda: SpatialForcing(host_of(vla()), None), "teacher"),
        ("type", "a name for a teacher", lambda: SpatialForcing(host_of(vla()), "vggt-1b"), "load_teacher"),
        ("type", "a model for a host", lambda: SpatialForcing(vla(), load_teacher(TEACHER)), "host_of"),
        ("size", "a teacher 7 wide", lambda: SpatialForcing(host_of(vla()), Wide()), "multiple of 4"),
        (
            "size",
            "statistics of others",
            lambda: forced(standardize=(torch.zeros(3), torch.ones(3))),
            "224",
        ),
        ("number", "projector 0 wide", lambda: Projector(0, 8), "at least 1"),
        ("number", "hidden -1", lambda: Projector(8, 8, hidden=-1), "at least 1"),
        (
            "size",
            "distance of two widths",
            lambda: cosine_distance(torch.ones(1, 2, 3), torch.ones(1, 2, 4), torch.ones(1, 2) > 0),
            "shape",
        ),
        ("missing", "nothing watched", lambda: forced()(torch.rand(1, 2, 3, 28, 28)), "never fired"),
        ("size", "features 3 wide", lambda: aligned(features(2, 2, 4, 4, 3)), "3 wide"),
        ("size", "three views", lambda: aligned(features(2, 3, 4, 4, 224)), "Got 3 views"),
        ("size", "another batch", lambda: aligned(features(5, 2, 4, 4, 224)), "a batch of 5"),
        ("type", "None", lambda: aligned(None), "Expected images"),
        ("type", "a list", lambda: aligned([1, 2]), "Expected images"),
        (
            "number",
            "features of NaN",
            lambda: aligned(
                features(2, 2, 4, 4, 224)._replace(tokens_BVHWC=torch.full((2, 2, 4, 4, 224), math.nan))
            ),
            "NaN",
        ),
        (
            "size",
            "presence of others",
            lambda: aligned(features(2, 2, 4, 4, 224), present_BV=torch.ones(3, 2) > 0),
            "present_BV",
        ),
        (
            "size",
            "sizes of one view",
            lambda: aligned(features(2, 2, 4, 4, 224), image_hw=[(28, 28)]),
            "1 views for 2 views",
        ),
        (
            "size",
            "affine of others",
            lambda: aligned(features(2, 2, 4, 4, 224), torch.rand(7, 2, 2, 3)),
            "affine",
        ),
    )
]


CASES: list[Case] = [*HOSTS, *GRIDS, *FORCING]
