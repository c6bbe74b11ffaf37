"""``points``, ``calibration check``."""

from malformed.case import Case, command
from malformed.damage import copied, holds, without

STORE = "points --features {here}/features --dataset {data}"
HERE = copied("features")
NOWHERE = "Nothing says where the cameras of"

CASES: list[Case] = [
    command("points", kind, f"{STORE} {options}", says, about=options, prepare=HERE)
    for kind, options, says in (
        ("missing", "", "The data set has no depth"),
        ("missing", "--depth pseudo:vggt-tiny-sim", NOWHERE),
        ("missing", "--calibration {here}/none.yaml", "none.yaml"),
        ("foreign", "--calibration {plain}", "plain.txt"),
        ("foreign", "--calibration {policy}/config.json", "config.json"),
        ("name", "--depth deep", "--depth is recorded or pseudo:<model>, got 'deep'"),
        ("name", "--depth pseudo:", "--depth is recorded or pseudo:<model>"),
        ("name", "--frame moon", "--frame"),
        ("number", "--batch 0", "A batch has at least one frame; got 0"),
        ("type", "--batch many", "--batch"),
        ("device", "--device gpu", "'gpu' is not a device"),
        ("foreign", "--dataset {other}", "is of another data set"),
        ("missing", "--dataset {here}/none", "none does not exist"),
    )
]
CASES += [
    command("points", "missing", "points --features {features}", "Say of which data set the features are"),
    command("points", "missing", "points --features {here}/none --dataset {data}", "no feature cache"),
    command("points", "foreign", "points --features {data} --dataset {data}", "no feature cache"),
    command("points", "missing", "points --features {begun} --dataset {data}", "an unfinished feature cache"),
    command(
        "points",
        "damaged",
        STORE,
        "codec.safetensors",
        prepare=copied("features", without("features/codec.safetensors")),
    ),
    command(
        "points",
        "damaged",
        STORE,
        "manifest",
        prepare=copied("features", holds("features/manifest.json", "{")),
    ),
]

CHECK = "calibration check --out {here}/sheet.png --dataset {data}"
CASES += [
    command("calibration check", kind, f"{CHECK} {options}", says, about=options)
    for kind, options, says in (
        ("missing", "", NOWHERE),
        ("missing", "--calibration {here}/none.yaml", "none.yaml"),
        ("foreign", "--calibration {plain}", "plain.txt"),
        ("number", "--frames 0 --calibration {plain}", "frames"),
        ("type", "--frames many", "--frames"),
        ("missing", "--dataset {here}/none", "none does not exist"),
    )
]
CASES += [
    command("calibration check", "missing", "calibration", "needs a subcommand: calibration check"),
    command("calibration check", "name", "calibration chekc", "Did you mean 'check'"),
    command("calibration check", "missing", "calibration check --out {here}/sheet.png", "--dataset"),
    command("calibration check", "foreign", "calibration check --dataset {data} --out {here}", "{here}"),
]
