"""The Python API, feature caches: what raw torch errors would say badly, or not at all."""

from pathlib import Path
from typing import Any

import torch

from malformed.call import TEACHER, Call
from malformed.case import Case, api
from malformed.damage import copied, cut, flipped, holds, without
from spatial_forcing import load_teacher
from spatial_forcing.cache.codec import CodecOptions
from spatial_forcing.cache.extract import Extraction, extract
from spatial_forcing.cache.store import FeatureStore
from spatial_forcing.cache.write import Share, write_features


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
            "is of another data set",
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


CASES: list[Case] = [*STORES, *EXTRACTED, *WRITES]
