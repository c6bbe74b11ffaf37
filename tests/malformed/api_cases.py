"""The Python API: what raw torch errors would say badly, or not at all.

Shapes: B batch, V views, H W rows and columns or pixels, C channels.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from malformed.case import Case, api
from malformed.damage import copied, cut, flipped, holds, without
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
from spatial_forcing.bootstrap import bootstrap_difference, bootstrap_rate, bootstrap_ratio
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import Share, write_features
from spatial_forcing.evaluate import LoadedPolicy
from spatial_forcing.hosts.tiny import TinyVLA, hash_words
from spatial_forcing.power import detectable_difference
from spatial_forcing.probe import DepthProbe, Frames, run_probe, tapped_tokens
from spatial_forcing.reach import Curve, steps_to_target
from spatial_forcing.report import write_report
from spatial_forcing.stats import holm, mcnemar, stratified_mcnemar, wilson
from spatial_forcing.uv import uv_position_embedding

TEACHER = "untrained-tiny"
Call = Callable[[Any, Path], Any]


def vla(**options: Any) -> TinyVLA:
    return TinyVLA(image_size=28, width=32, heads=2, **options)


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


def looked(images: Callable[[], Any]) -> Call:
    return lambda bench, here: load_teacher(TEACHER)(images())


def given(call: Callable[[], Any]) -> Call:
    return lambda bench, here: call()


def loaded(name: Any, **options: Any) -> Call:
    return lambda bench, here: load_teacher(name, **options)


def with_weights(name: str, file: str) -> Call:
    """A named teacher with a file of weights from the bench or the case's folder."""
    return lambda bench, here: load_teacher(name, weights=Path(bench.filled(file)))


class NoHost(nn.Module):
    def spatial_forcing_host(self) -> str:
        return "a host"


class Wide:
    """A teacher of an odd width."""

    width, fingerprint, licence = 7, "f", "none"


TEACHERS = [
    *(
        api("load_teacher", kind, what, loaded(*name, **options), says)
        for kind, what, name, options, says in (
            ("type", "5", (5,), {}, "A teacher has a name or a path; got 5"),
            ("type", "None", (None,), {}, "A teacher has a name or a path; got None"),
            ("name", "vggt-2b", ("vggt-2b",), {}, "Did you mean 'vggt-1b'"),
            ("name", "nothing", ("",), {}, "no file or folder) ''"),
            ("name", "a path that is not there", ("/none/at/all",), {}, "no file or folder"),
            ("number", "resolution 0", (TEACHER,), {"resolution": 0}, "must be a multiple"),
            ("number", "resolution -14", (TEACHER,), {"resolution": -14}, "must be a multiple"),
            ("type", "resolution 'big'", (TEACHER,), {"resolution": "big"}, "resolution"),
            ("type", "resolution 28.0", (TEACHER,), {"resolution": 28.0}, "resolution"),
            ("size", "resolution (28,)", (TEACHER,), {"resolution": (28,)}, "resolution"),
            ("number", "layer 99", (TEACHER,), {"layer": 99}, "No layer 99"),
            ("number", "layer -9", (TEACHER,), {"layer": -9}, "No layer -9"),
            ("type", "layer 'last'", (TEACHER,), {"layer": "last"}, "layer"),
            ("number", "pixels, layer 3", ("pixels",), {"layer": 3}, "layer 3"),
            ("type", "dtype 'float32'", (TEACHER,), {"dtype": "float32"}, "got 'float32'"),
            ("type", "dtype int8", (TEACHER,), {"dtype": torch.int8}, "got torch.int8"),
            ("device", "cuda:99", (TEACHER,), {"device": "cuda:99"}, "Available: cpu"),
            ("device", "quantum", (TEACHER,), {"device": "quantum"}, "'quantum' is not a device"),
            ("number", "batch_size 0", (TEACHER,), {"batch_size": 0}, "batch_size must be at least 1"),
            ("type", "batch_size 'all'", (TEACHER,), {"batch_size": "all"}, "batch_size must be"),
        )
    ),
    *(
        api("load_teacher", kind, what, with_weights(*weights), says, prepare=prepare)
        for kind, what, weights, says, prepare in (
            ("missing", "no file", ("vggt-tiny-sim", "{here}/none"), "no such file or folder", None),
            ("foreign", "text", ("vggt-1b", "{plain}"), "not a PyTorch file of plain tensors", None),
            ("foreign", "a policy's", ("vggt-1b", "{policy}/model.safetensors"), "do not fit", None),
            (
                "foreign",
                "no description",
                ("vggt-tiny-sim", "{policy}/model.safetensors"),
                "does not say what it is",
                None,
            ),
            ("foreign", "a data set", ("vggt-1b", "{data}"), "No weights in the folder", None),
            (
                "damaged",
                "cut safetensors",
                ("vggt-1b", "{here}/policy/model.safetensors"),
                "is not a readable safetensors file",
                copied("policy", cut("policy/model.safetensors")),
            ),
            (
                "foreign",
                "a pickle",
                ("vggt-1b", "{here}/x.pt"),
                "not a PyTorch file of plain tensors",
                holds("x.pt", b"cos\nsystem\n(S'true'\ntR."),
            ),
        )
    ),
    api(
        "load_teacher",
        "damaged",
        "a transformers folder that is none",
        lambda bench, here: load_teacher(here / "t"),
        "config.json",
        prepare=holds("t/config.json", '{"image_size": '),
    ),
    api(
        "load_teacher",
        "foreign",
        "a folder with a configuration of something else",
        lambda bench, here: load_teacher(here / "t"),
        "t",
        prepare=holds("t/config.json", '{"model_type": "bert"}'),
    ),
]

IMAGES = [
    api("teacher", kind, what, looked(images), says)
    for kind, what, images, says in (
        ("type", "a list", lambda: [[1.0]], "Expected images"),
        ("type", "None", lambda: None, "Expected images"),
        ("size", "no views", lambda: torch.rand(2, 3, 28, 28), "got shape (2, 3, 28, 28)"),
        ("size", "channels last", lambda: torch.rand(2, 1, 28, 28, 3), "move the channels"),
        ("size", "one channel", lambda: torch.rand(2, 1, 1, 28, 28), "1 channels"),
        ("size", "empty", lambda: torch.rand(0, 1, 3, 28, 28), "got shape (0, 1, 3, 28, 28)"),
        ("type", "bytes", lambda: torch.zeros(1, 1, 3, 28, 28, dtype=torch.uint8), "divide by 255"),
        ("number", "0 to 255", lambda: 255 * torch.rand(1, 1, 3, 28, 28), "before any normalisation"),
        ("number", "NaN", lambda: torch.full((1, 1, 3, 28, 28), math.nan), "got values from nan"),
        ("number", "infinite", lambda: torch.full((1, 1, 3, 28, 28), math.inf), "got values from inf"),
    )
]

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


def store(name: str = "features", **options: Any) -> Call:
    return lambda bench, here: FeatureStore(getattr(bench, name, here / name), **options)


def read(index: Any, name: str = "features") -> Call:
    return lambda bench, here: FeatureStore(getattr(bench, name)).read(index)


def damaged(here_name: str = "features") -> Call:
    return lambda bench, here: FeatureStore(here / here_name).read(torch.tensor([0]))


def checked(**options: Any) -> Call:
    return lambda bench, here: FeatureStore(bench.features).check(**options)


STORES = [
    api("FeatureStore", kind, what, call, says, prepare=prepare)
    for kind, what, call, says, prepare in (
        ("missing", "no folder", store("none"), "holds no feature cache", None),
        ("missing", "unfinished", store("begun"), "unfinished feature cache", None),
        ("foreign", "a file", store("plain"), "holds no feature cache", None),
        ("foreign", "a data set", store("data"), "holds no feature cache", None),
        ("type", "None", lambda b, h: FeatureStore(None), "a folder; got None", None),
        ("foreign", "PCA targets of raw", store("raw", pca_targets=True), "no PCA coefficients", None),
        ("number", "layer 1 of a cache of 3", store(layer=1), "written with layer 3, and layer 1", None),
        ("type", "layer 'last'", store(layer="last"), "a whole number", None),
        ("number", "frame 99", read(torch.tensor([0, 99])), "Frame 99 was asked for", None),
        ("number", "frame -1", read(torch.tensor([-1])), "Frame -1 was asked for", None),
        ("type", "half a frame", read(torch.tensor([0.5])), "whole numbers", None),
        ("type", "a list", read([0, 1]), "whole numbers", None),
        ("size", "frames in rows", read(torch.zeros(2, 2, dtype=torch.long)), "whole numbers", None),
        ("name", "another teacher", checked(teacher="pixels", cameras=()), "not 'pixels'", None),
        ("name", "other cameras", checked(teacher=None, cameras=("top",)), "those to align are top", None),
        (
            "foreign",
            "another data set",
            lambda b, h: FeatureStore(b.features).check(
                teacher=None, cameras=FeatureStore(b.features).source.cameras, dataset_root=b.other
            ),
            "is of data set",
            None,
        ),
        ("damaged", "cut shard", damaged(), "is damaged", copied("features", cut("features/shard*"))),
        ("damaged", "no shard", damaged(), "is missing", copied("features", without("features/shard*"))),
        ("damaged", "bit in codec", damaged(), "is damaged", copied("features", flipped("features/codec*"))),
        ("encoding", "manifest", damaged(), "is damaged", copied("features", flipped("features/manifest*"))),
        (
            "foreign",
            "manifest of something else",
            damaged(),
            "has format",
            copied("features", holds("features/manifest.json", "{}")),
        ),
    )
]


def extracted(dataset: str = "{data}", root: Path | None = None, **options: Any) -> Call:
    def call(bench: Any, here: Path) -> Any:
        where = root or here / "f"
        teacher, how = load_teacher(TEACHER), Extraction(**options)
        return extract(Path(bench.filled(dataset)), teacher, TEACHER, where, how)

    return call


EXTRACTED = [
    api("extract", kind, what, call, says)
    for kind, what, call, says in (
        ("missing", "no data set", extracted("{here}/none"), "does not exist"),
        ("foreign", "no data set but a cache", extracted("{features}"), "is not a LeRobotDataset"),
        ("name", "camera 'top'", extracted(cameras=["top"]), "Unknown camera 'top'"),
        ("number", "grid 0 x 2", extracted(grid=(0, 2)), "at least one row and one column"),
        ("size", "grid of three", extracted(grid=(2, 2, 2)), "at least one row and one column"),
        ("size", "grid 9 x 9", extracted(grid=(9, 9)), "larger than the teacher's, which is 8 x 8"),
        ("number", "batch 0", extracted(batch_size=0), "at least one frame; got 0"),
        ("number", "decoders 0", extracted(decoders=0), "Decoding takes a thread; got 0"),
        ("foreign", "into a file", lambda b, h: extracted(root=b.plain)(b, h), "is not a folder"),
        ("taken", "into a data set", lambda b, h: extracted(root=b.data)(b, h), "is not empty"),
        ("number", "share 2 of 2", lambda b, h: Share(2, 2), "rank 0 to world - 1"),
        ("number", "share -1", lambda b, h: Share(-1, 2), "rank 0 to world - 1"),
        ("name", "codec 'zip'", lambda b, h: CodecOptions("zip"), "one of pca-int8, float16, raw"),
        ("number", "fidelity 1.5", lambda b, h: CodecOptions(fidelity=1.5), "between 0 and 1"),
        ("type", "fidelity 'high'", lambda b, h: CodecOptions(fidelity="high"), "between 0 and 1"),
        ("number", "components 0", lambda b, h: CodecOptions(components=0), "at least one component"),
        ("type", "components 2.5", lambda b, h: CodecOptions(components=2.5), "got 2.5"),
    )
]

F, CELLS = 6, (6, 1, 2, 2)


def probe_inputs(**changed: Any) -> tuple[Any, ...]:
    usual = {
        "tokens": torch.rand(*CELLS, 3),
        "depth": 1 + torch.rand(6, 1, 8, 8),
        "episodes": torch.arange(F) // 2,
    }
    return tuple((usual | changed).values())


def frames(first_episode: int) -> Frames:
    return Frames(torch.rand(6, 1, 8, 8), first_episode + torch.arange(F))


def fitted(**changed: Any) -> Any:
    return DepthProbe(sub_grid=2).fit(*probe_inputs(**changed))


PROBES = [
    api("probe", kind, what, given(call), says)
    for kind, what, call, says in (
        ("size", "flat tokens", lambda: fitted(tokens=torch.rand(6, 4)), "expected floating numbers"),
        ("type", "whole tokens", lambda: fitted(tokens=torch.ones(*CELLS, 3).long()), "expected floating"),
        ("number", "tokens of NaN", lambda: fitted(tokens=torch.full((*CELLS, 3), math.nan)), "NaN"),
        ("size", "depth of others", lambda: fitted(depth=torch.rand(5, 1, 8, 8)), "same frames and views"),
        ("size", "flat depth", lambda: fitted(depth=torch.rand(6, 8)), "and depth"),
        ("size", "small depth", lambda: fitted(depth=1 + torch.rand(6, 1, 2, 2)), "smaller sub_grid"),
        ("number", "depth in millimetres", lambda: fitted(depth=torch.full((6, 1, 8, 8), 900.0)), "metres"),
        ("size", "one episode", lambda: fitted(episodes=torch.zeros(F)), "at least two episodes"),
        ("size", "episodes of others", lambda: fitted(episodes=torch.arange(4)), "one episode a frame"),
        ("number", "sub-grid 0", lambda: DepthProbe(sub_grid=0), "at least 1"),
        ("number", "far -1", lambda: DepthProbe(far=-1), "above zero"),
        ("number", "far NaN", lambda: DepthProbe(far=math.nan), "above zero"),
        ("missing", "no ridges", lambda: DepthProbe(ridges=()), "ridge"),
        ("number", "ridge -1", lambda: DepthProbe(ridges=(-1.0,)), "ridge"),
        ("missing", "not fitted", lambda: DepthProbe().predict(torch.rand(*CELLS, 3)), "call fit() first"),
        ("size", "predict others", lambda: fitted().predict(torch.rand(6, 1, 2, 2, 9)), "Expected tokens"),
        (
            "missing",
            "no sources",
            lambda: run_probe({}, frames(0), frames(F)),
            "no source of tokens",
        ),
        (
            "taken",
            "test on training",
            lambda: run_probe({}, frames(0), frames(0)),
            "are in both training and test",
        ),
        ("missing", "no batches", lambda: tapped_tokens(vla(), []), "no batches"),
        ("foreign", "no host", lambda: tapped_tokens(nn.Linear(2, 2), []), "is not a host"),
    )
]

STATISTICS = [
    api("stats", kind, what, given(call), says)
    for kind, what, call, says in (
        ("number", "5 of 3", lambda: wilson(5, 3), "got 5 of 3"),
        ("number", "-1 of 3", lambda: wilson(-1, 3), "got -1 of 3"),
        ("number", "0 of 0", lambda: wilson(0, 0), "got 0 of 0"),
        ("number", "confidence 2", lambda: wilson(1, 3, 2.0), "between 0 and 1, got 2.0"),
        ("number", "confidence NaN", lambda: wilson(1, 3, math.nan), "between 0 and 1, got nan"),
        ("type", "text", lambda: wilson("1", 3), "got '1' of 3"),
        ("type", "half a success", lambda: wilson(1.5, 3), "got 1.5 of 3"),
        ("size", "unequal arms", lambda: mcnemar([True], [True, False]), "got 1 and 2"),
        ("size", "no episodes", lambda: mcnemar([], []), "got 0 and 0"),
        (
            "foreign",
            "other episodes",
            lambda: mcnemar([True], [True], a_episodes=[1], b_episodes=[2]),
            "not evaluated on the same episodes",
        ),
        ("size", "empty curve", lambda: steps_to_target(Curve([], []), Curve([1], [1])), "at least one step"),
        (
            "number",
            "curve of NaN",
            lambda: steps_to_target(Curve([1], [math.nan]), Curve([1], [1])),
            "must be finite",
        ),
        ("number", "steps back", lambda: steps_to_target(Curve([2, 1], [1, 1]), Curve([1], [1])), "increase"),
        ("number", "ratio of zero", lambda: bootstrap_ratio([0], [1]), "steps above zero"),
        ("number", "no resamples", lambda: bootstrap_difference([1, 2], [1, 2], resamples=0), "resample"),
        ("number", "p-value 2", lambda: holm([0.1, 2.0]), "between 0 and 1"),
        ("size", "no strata", lambda: stratified_mcnemar([]), "at least one stratum"),
        (
            "size",
            "empty seed",
            lambda: bootstrap_rate([[1.0], []]),
            "at least one for each",
        ),
        ("number", "share 2", lambda: detectable_difference(50, discordant=2), "between 0 and 1, got 2"),
        ("number", "-3 seeds", lambda: detectable_difference(50, -3), "at least 0, got -150"),
        ("number", "difference of NaN", lambda: bootstrap_difference([1], [math.nan]), "finite"),
    )
]


def dataset_error(name: str, *arguments: Any, **options: Any) -> Call:
    def call(bench: Any, here: Path) -> Any:
        from spatial_forcing.sim import collect, env

        home = collect if hasattr(collect, name) else env
        return getattr(home, name)(*(here if a == "here" else a for a in arguments), **options)

    return call


SIMULATION = [
    api("sim", kind, what, call, says)
    for kind, what, call, says in (
        ("name", "task", dataset_error("SimEnv", "reech-v3"), "Did you mean 'reach-v3'"),
        ("name", "camera", dataset_error("SimEnv", camera="moving"), "Unknown camera mode 'moving'"),
        ("name", "start", dataset_error("SimEnv", start="there"), "Unknown start 'there'"),
        ("number", "size 0", dataset_error("SimEnv", size=0), "size must be at least"),
        ("number", "max_steps -1", dataset_error("SimEnv", max_steps=-1), "max_steps must be at least 1"),
        ("number", "look_every 0", dataset_error("SimEnv", look_every=0), "look_every must be at least 1"),
        ("type", "episodes 1.5", dataset_error("DemoSpec", episodes=1.5), "episodes"),
        ("number", "noise -1", dataset_error("DemoSpec", noise=-1), "noise must be at least 0"),
        ("missing", "no tasks", dataset_error("DemoSpec", tasks=()), "Name at least one task"),
        ("missing", "no demonstrations", dataset_error("demo_dataset", "here"), "holds no demonstrations"),
        ("missing", "no geometry", dataset_error("load_geometry", "here", 0), "has no geometry"),
        ("missing", "no policy", lambda b, h: LoadedPolicy(h), "is not a policy checkpoint"),
        ("foreign", "no results", lambda b, h: write_report({}, h), "has no 'title'"),
        ("type", "results in a list", lambda b, h: write_report([], h), "must be"),
    )
]

WRITES = [
    api(
        "extract",
        "foreign",
        "a source without frames",
        lambda b, h: write_features(h / "f", nothing(), lambda i: torch.ones(0), load_teacher(TEACHER)),
        "has no frames",
    )
]


def nothing() -> Any:
    from spatial_forcing.cache.layout import Source

    return Source("t", "f", "none", "d", ("left",), frames=0)


CASES: list[Case] = [
    *(*TEACHERS, *IMAGES, *HOSTS, *GRIDS, *FORCING, *STORES),
    *(*EXTRACTED, *PROBES, *STATISTICS, *SIMULATION, *WRITES),
]
