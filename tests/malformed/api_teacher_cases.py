"""The Python API, teachers and their images: what raw torch errors would say badly, or not at all."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from malformed.call import TEACHER, Call
from malformed.case import Case, api
from malformed.damage import copied, cut, holds
from spatial_forcing import load_teacher


def looked(images: Callable[[], Any]) -> Call:
    return lambda bench, here: load_teacher(TEACHER)(images())


def loaded(name: Any, **options: Any) -> Call:
    return lambda bench, here: load_teacher(name, **options)


def with_weights(name: str, file: str) -> Call:
    """A named teacher with a file of weights from the bench or the case's folder."""
    return lambda bench, here: load_teacher(name, weights=Path(bench.filled(file)))


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
    *(
        api("load_teacher", kind, f"{name}: {what}", with_weights(name, file), says, prepare=prepare)
        for name, misfit in (
            ("da3-small", "do not fit"),
            ("mapanything", "do not fit"),
            ("c-radio-base", "do not fit naflexvit_base_patch16_radio_v3"),
        )
        for kind, what, file, says, prepare in (
            ("missing", "no file", "{here}/none", "no such file", None),
            ("foreign", "text", "{plain}", "{plain}", None),
            ("foreign", "a policy's", "{policy}/model.safetensors", misfit, None),
            ("foreign", "a data set", "{data}", "No weights", None),
            (
                "damaged",
                "cut safetensors",
                "{here}/policy/model.safetensors",
                "{here}/policy/model.safetensors",
                copied("policy", cut("policy/model.safetensors")),
            ),
        )
    ),
    *(
        api(
            "load_teacher",
            kind,
            f"timm: {what}",
            lambda bench, here: load_teacher(here / "t"),
            says,
            prepare=holds("t/config.json", config),
        )
        for kind, what, config, says in (
            ("name", "no such model", '{"architecture": "vit_huge_gigantic"}', "vit_huge_gigantic"),
            ("missing", "no weights", '{"architecture": "vit_tiny_patch16_224"}', "do not fit vit_tiny"),
            ("type", "architecture 5", '{"architecture": 5}', "{here}/t"),
            ("type", "a list", "[1]", "{here}/t"),
            (
                "type",
                "settings 5",
                '{"architecture": "resnet18", "pretrained_cfg": 5}',
                "do not fit resnet18",
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
    api(
        "load_teacher",
        "missing",
        "a folder without a teacher",
        lambda bench, here: load_teacher(here / "t"),
        "Expected a model of transformers or timm as in their Hub repositories",
        prepare=holds("t/readme.txt", ""),
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


CASES: list[Case] = [*TEACHERS, *IMAGES]
