"""``spatial-forcing``'s names, ``cache`` and ``cache verify``."""

from malformed.case import Case, command
from malformed.damage import both, changed, copied, cut, flipped, holds, mode, without

WRITE = "cache --dataset {data} --teacher untrained-tiny --out {here}/f"
SANE = tuple(WRITE.split())
# Into what is there already, with the options it was made with.
INTO = "cache --dataset {data} --teacher untrained-tiny --components 12 --out {here}/"
VERIFY = "cache verify --out {here}/features"
REPAIR = VERIFY + " --repair --dataset {data}"

NAMES = [
    command("commands", "name", "qqq", "Unknown command 'qqq'. Available: cache, calibration, collect"),
    command("commands", "name", "cahce --out {here}/f", "Did you mean 'cache'"),
    command("commands", "name", "CACHE", "Unknown command 'CACHE'"),
    command("commands", "name", "''", "Unknown command ''"),
    command("commands", "name", "cache verfy", "Did you mean 'verify'"),
    command("commands", "name", "cache extra", "Available: verify"),
    command("commands", "missing", "", "Expected one of {demo, collect, teachers, cache, points"),
    command("commands", "name", "--nosuch", "--nosuch"),
    command("commands", "name", "collect --out {here}/d stray", "stray"),
    command("commands", "name", "demos --out {here}/d", "The command demos is called collect now"),
    command("commands", "name", "demo --weight 2", "The option --weight of demo is called --loss-weight now"),
    command("commands", "name", "doctor --depth=3", "The option --depth of doctor is called --site now"),
    command("commands", "name", "cache --datset {data}", "--dataset"),
    command("commands", "name", "cache verify --otu {features}", "--out"),
    command("commands", "missing", "eval", "--policies"),
    command("commands", "missing", "collect", "--out"),
    command("commands", "missing", "report --out", "--out"),
    command("commands", "missing", "probe --device", "--device"),
]

VGGT = "--teacher vggt-1b --teacher-checkpoint"
OPTIONS = [
    command("cache", kind, f"{WRITE} {options}", says, about=options, afterwards=SANE if sane else ())
    for kind, options, says, sane in (
        ("type", "--batch abc", "--batch", 0),
        ("type", "--batch 1.5", "--batch", 0),
        ("type", "--grid 4", "--grid", 0),
        ("type", "--grid 4 4 4", "4", 0),
        ("type", "--grid a b", "--grid", 0),
        ("type", "--fidelity high", "--fidelity", 0),
        ("type", "--components 3.5", "--components", 0),
        ("type", "--decoders two", "--decoders", 0),
        ("type", "--resolution big", "--resolution", 0),
        ("name", "--codec pca", "--codec", 0),
        ("name", "--dtype float8", "--dtype", 0),
        ("number", "--batch 0", "A batch has at least one frame; got 0", 1),
        ("number", "--batch -1", "A batch has at least one frame; got -1", 0),
        ("number", "--grid 0 -2", "A grid has at least one row and one column; got 0 x -2", 1),
        ("number", "--grid 0 4", "got 0 x 4", 0),
        ("size", "--grid 50 50", "larger than the teacher's, which is 8 x 8", 1),
        ("size", "--grid 9 8", "larger than the teacher's, which is 8 x 8", 0),
        ("number", "--components 0", "at least one component; got 0", 0),
        ("number", "--components -3", "at least one component; got -3", 0),
        ("size", "--components 9999", "have 224 channels; 9999 components cannot", 1),
        ("number", "--fidelity 0", "The fidelity is between 0 and 1; got 0.0", 0),
        ("number", "--fidelity 1", "The fidelity is between 0 and 1; got 1.0", 0),
        ("number", "--fidelity nan", "The fidelity is between 0 and 1; got nan", 0),
        ("number", "--fidelity -1", "The fidelity is between 0 and 1; got -1.0", 0),
        ("number", "--decoders 0", "Decoding takes a thread; got 0", 0),
        ("number", "--resolution 0", "resolution 0 x 0 must be a multiple of", 1),
        ("number", "--resolution -14", "resolution -14 x -14 must be a multiple of", 0),
        ("number", "--resolution 113", "take 112 or 126 instead of 113", 0),
        ("name", "--teacher vgg-1b", "Did you mean 'vggt-1b'", 0),
        ("name", "--teacher ''", "no file or folder) ''", 0),
        ("name", "--cameras observation.images.lefd", "Did you mean 'observation.images.left'", 1),
        ("name", "--cameras action", "Unknown camera 'action'", 0),
        (
            "name",
            "--cameras observation.images.left observation.images.left",
            "Name at least one camera, and none twice",
            0,
        ),
        ("type", "--layers one two", "--layers", 0),
        ("number", "--layers 0 9", "No layer 9", 1),
        ("number", "--layers -9 0", "No layer -9", 0),
        ("number", "--layers 1 1", "none twice; got 1, 1", 0),
        ("name", "--layer 1 --layers 1 2", "or --layers for several", 1),
        ("taken", "--layers 0 1 --out {features}", "of one layer, and several need folders of their own", 0),
        ("taken", "--layers 0 1 --out {data}", "is the folder of a data set: choose another", 0),
        ("missing", "--dataset {here}/nothing", "nothing does not exist", 0),
        ("missing", "--dataset ''", "is not a LeRobotDataset", 0),
        ("foreign", "--dataset {data}/meta", "is not a LeRobotDataset", 0),
        ("foreign", "--dataset {plain}", "is not a LeRobotDataset", 0),
        ("foreign", "--dataset {features}", "is not a LeRobotDataset", 0),
        ("missing", "--dataset nobody/nothing", "is no folder here, and could not be read from the Hub", 1),
        ("missing", "--teacher dinov2-small", "could not be fetched from the Hub", 0),
        ("missing", "--teacher vggt-1b", "could not be fetched from the Hub", 0),
        ("missing", f"{VGGT} {{here}}/none", "no such file or folder", 0),
        ("foreign", f"{VGGT} {{plain}}", "is not a PyTorch file of plain tensors", 0),
        ("foreign", f"{VGGT} {{policy}}/model.safetensors", "do not fit the model", 0),
        ("foreign", f"{VGGT} {{data}}", "No weights in the folder", 0),
        ("foreign", "--teacher dinov2-small --teacher-checkpoint {data}", "expected a folder with its", 0),
        ("device", "--device cuda:99", "Available: cpu", 1),
        ("device", "--device nonsense", "'nonsense' is not a device", 0),
        ("device", "--device ''", "'' is not a device", 0),
        ("device", "--device meta", "no device 'meta' that torch can use", 0),
        ("foreign", "--out {plain}", "plain.txt is not a folder", 0),
        ("foreign", "--out {plain}/deep/f", "plain.txt is not a folder", 0),
        ("foreign", "--out /proc/self/f", "cannot be", 0),
        ("name", "--out {here}/" + "n" * 300, "File name too long", 0),
        ("taken", "--out {data}", "is the folder of a data set: choose another", 0),
        ("taken", "--out {root}", "not empty and holds no feature cache", 0),
    )
]
MISSING = [
    command("cache", "missing", "cache", "Say which data set"),
    command(
        "cache",
        "missing",
        "cache --dataset {data}",
        "Say which teacher: --teacher <name>. Known: c-radio-base, ",
    ),
    command(
        "cache",
        "number",
        WRITE + " --codec raw",
        "A share is rank 0 to world - 1 of world; got 5 of 2",
        environment=(("RANK", "5"), ("WORLD_SIZE", "2")),
        afterwards=SANE,
    ),
    command(
        "cache", "type", WRITE, "RANK", environment=(("RANK", "first"), ("WORLD_SIZE", "2")), afterwards=SANE
    ),
]

RIGHTS = [
    command(
        "cache",
        "permission",
        "cache --dataset {data} --teacher untrained-tiny --out {here}/shut/f",
        "may not be written to",
        prepare=mode("shut", 0o555),
        under="no rights",
    ),
    command(
        "cache",
        "permission",
        INTO + "begun",
        "may not be written to",
        prepare=copied("begun", mode("begun", 0o555)),
        under="no rights",
    ),
    command(
        "cache",
        "permission",
        "cache --dataset {here}/data --teacher untrained-tiny --out {here}/f",
        "Permission denied",
        prepare=copied("data", mode("data/meta/info.json", 0o000)),
        under="no rights",
    ),
    command(
        "cache",
        "permission",
        "cache verify --out {here}/features",
        "Permission denied",
        prepare=copied("features", mode("features/manifest.json", 0o000)),
        under="no rights",
    ),
    command(
        "cache",
        "permission",
        "cache verify --out {here}/features",
        "Permission denied",
        prepare=copied("features", mode("features/shard-00000.safetensors", 0o000)),
        under="no rights",
    ),
    command("cache", "full disk", WRITE, "Could not write", under="full disk", afterwards=SANE),
    command(
        "cache",
        "full disk",
        INTO + "begun",
        "Could not write",
        prepare=copied("begun", without("begun/shard-00000.safetensors")),
        under="full disk",
        afterwards=tuple((INTO + "begun").split()),
    ),
    command(
        "cache",
        "full disk",
        "cache verify --out {here}/features --repair --dataset {data}",
        "Could not write",
        prepare=copied("features", flipped("features/shard-00000.safetensors")),
        under="full disk",
        afterwards=tuple(REPAIR.split()),
    ),
]

DATA = [
    command(
        "cache",
        kind,
        f"cache --dataset {{here}}/{name} --teacher untrained-tiny --out {{here}}/f",
        says,
        prepare=copied(name, step),
    )
    for kind, name, step, says in (
        ("damaged", "data", cut("data/meta/info.json"), "cannot be read"),
        ("encoding", "data", flipped("data/meta/info.json"), "cannot be read"),
        ("foreign", "data", holds("data/meta/info.json", "[]"), "cannot be read"),
        ("foreign", "data", holds("data/meta/info.json", "{}"), "cannot be read"),
        ("damaged", "data", without("data/meta/stats.json"), "stats.json"),
        ("damaged", "data", cut("data/meta/stats.json"), "cannot be read"),
        ("damaged", "data", without("data/meta/tasks.parquet"), "cannot be read"),
        ("damaged", "data", cut("data/meta/episodes/*/*.parquet"), "cannot be read"),
        ("damaged", "data", cut("data/data/*/*.parquet"), "cannot be read"),
        ("damaged", "data", without("data/data/*/*.parquet"), "cannot be read"),
        ("damaged", "video", cut("video/videos/*/*/*.mp4"), "cannot be read"),
        ("damaged", "video", cut("video/videos/*/*/*.mp4", 0), "cannot be read"),
        ("damaged", "video", without("video/videos/*/*/*.mp4"), "cannot be read"),
        ("foreign", "video", holds("video/videos/*/*/*.mp4", "no video"), "cannot be read"),
    )
]

TAKEN = [
    command(
        "cache",
        kind,
        f"{INTO}{name} {options}",
        says,
        about=f"{name} {options}",
        prepare=copied(name, *steps),
    )
    for kind, name, options, says, steps in (
        ("taken", "features", "--components 8", "components", ()),
        ("taken", "features", "--codec raw", "raw", ()),
        ("taken", "features", "--grid 4 4", "grid", ()),
        ("taken", "features", "--batch 3", "batch_size: 32 there, 3 wanted", ()),
        ("taken", "features", "--teacher pixels", "teacher: 'untrained-tiny' there, 'pixels' wanted", ()),
        ("taken", "features", "--dataset {other}", "dataset", ()),
        ("taken", "features", "--cameras observation.images.right", "cameras", ()),
        ("taken", "begun", "--teacher pixels", "teacher: 'untrained-tiny' there, 'pixels' wanted", ()),
        ("damaged", "begun", "", "source.json is damaged", (cut("begun/source.json"),)),
        ("damaged", "begun", "", "codec.safetensors cannot be read", (cut("begun/codec.safetensors"),)),
        ("foreign", "begun", "", "codec.safetensors", (holds("begun/codec.safetensors", "no tensors"),)),
        ("damaged", "begun", "", "shard-00000.safetensors", (cut("begun/shard-00000.safetensors"),)),
        ("damaged", "features", "", "manifest.json is damaged", (cut("features/manifest.json"),)),
        ("encoding", "features", "", "manifest.json is damaged", (flipped("features/manifest.json"),)),
        ("damaged", "features", "", "--repair", (without("features/shard-00000.safetensors"),)),
        (
            "foreign",
            "features",
            "",
            "has format 2, this version reads",
            (changed("features/manifest.json", '"format": 3', '"format": 2'),),
        ),
        (
            "damaged",
            "features",
            "",
            "its checksum is not that of what it says",
            (changed("features/manifest.json", '"frames": 15', '"frames": 16'),),
        ),
    )
]

VERIFIED = [
    command(
        "cache verify",
        kind,
        f"{VERIFY} {options}",
        says,
        about=options or "as it is",
        prepare=copied("features", *steps),
    )
    for kind, options, says, steps in (
        ("missing", "--out {here}/none", "holds no feature cache", ()),
        ("missing", "--out {begun}", "holds an unfinished feature cache", ()),
        ("foreign", "--out {plain}", "holds no feature cache", ()),
        ("foreign", "--out {data}", "holds no feature cache", ()),
        ("damaged", "", "1 of the files", (flipped("features/shard-00000.safetensors"),)),
        ("damaged", "", "1 of the files", (cut("features/shard-00000.safetensors"),)),
        ("damaged", "", "1 of the files", (without("features/shard-00000.safetensors"),)),
        ("damaged", "", "1 of the files", (flipped("features/codec.safetensors"),)),
        ("damaged", "", "2 of the files", (cut("features/codec.safetensors"), cut("features/shard*"))),
        ("encoding", "", "manifest.json is damaged", (flipped("features/manifest.json"),)),
        ("damaged", "", "manifest.json is damaged", (cut("features/manifest.json", 0),)),
        ("foreign", "", "expected a JSON object, found a list", (holds("features/manifest.json", "[]"),)),
        ("foreign", "", "has format None", (holds("features/manifest.json", "{}"),)),
        (
            "damaged",
            "",
            "manifest.json is damaged: its 'sums'",
            (changed("features/manifest.json", '"sums"', '"sumz"'),),
        ),
        (
            "damaged",
            "",
            "manifest.json",
            (changed("features/manifest.json", '"codec.safetensors"', '"../codec"'),),
        ),
        ("missing", "--repair", "of which data set", (cut("features/shard*"),)),
        ("foreign", "--repair --dataset {other}", "dataset", (cut("features/shard*"),)),
        ("foreign", "--repair --dataset {here}/none", "does not exist", (cut("features/shard*"),)),
        ("foreign", "--repair --dataset {data} --resolution 56", "fingerprint", (cut("features/shard*"),)),
        ("device", "--repair --dataset {data} --device cuda:99", "Available: cpu", (cut("features/shard*"),)),
        ("foreign", "--dataset {other}", "are not what the teacher says now", ()),
        ("number", "--dataset {data} --decoders 0", "Decoding takes a thread", ()),
        ("name", "--repiar", "--repair", ()),
    )
]

CASES: list[Case] = [
    *(*NAMES, *OPTIONS, *MISSING, *RIGHTS, *DATA, *TAKEN, *VERIFIED),
    command(
        "cache verify",
        "permission",
        REPAIR,
        "may not be written to",
        prepare=copied("features", both(cut("features/shard*"), mode("features", 0o555))),
        under="no rights",
    ),
]
