"""``teachers``."""

from malformed.case import Case, command
from malformed.damage import holds

SCORE = "teachers --dataset {data} --out {here}/scores.json"

CASES: list[Case] = [
    command("teachers", kind, f"{SCORE} {options}", says, about=options)
    for kind, options, says in (
        ("name", "--teachers vgtt-1b", "Did you mean 'vggt-1b'"),
        ("name", "--teachers ''", "Unknown teacher"),
        ("name", "--cameras front", "Unknown camera 'front'"),
        ("foreign", "--teachers {plain}", "plain.txt"),
        ("type", "--frames many", "--frames"),
        ("type", "--layers last", "--layers"),
        ("type", "--grid 8", "--grid"),
        ("number", "--frames 1", "two frames and a grid of 3 x 3 tokens at least; got 1 frames"),
        ("number", "--frames -4", "got -4 frames"),
        ("number", "--grid 0 0", "got 64 frames and 0 x 0"),
        ("number", "--teachers untrained-tiny --layers 4", "No layer 4: untrained-tiny has layers 0 to 3"),
        ("size", "--teachers pixels --grid 99 99", "fewer than the grid of 99 x 99"),
        ("device", "--device gpu", "'gpu' is not a device"),
    )
]
CASES += [
    command("teachers", "missing", "teachers --dataset {here}/none", "none does not exist"),
    command("teachers", "missing", "teachers --layers 1", "--layers: say of which data set"),
    command("teachers", "foreign", "teachers --dataset {data} --out {plain}/scores.json", "is not a folder"),
    command("teachers", "taken", "teachers --dataset {data} --out {here}", "is a folder"),
    command(
        "teachers",
        "damaged",
        f"{SCORE} --teachers {{here}}/teacher.safetensors",
        "teacher.safetensors",
        prepare=holds("teacher.safetensors", b"\x00\x01"),
    ),
]
