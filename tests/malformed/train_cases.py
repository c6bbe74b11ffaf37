"""``spatial-forcing train``, and LeRobot's own command, which prints what it likes before our last line."""

from malformed.case import Case, command
from malformed.damage import changed, copied, cut, flipped, holds, mode, without

FORCED = (
    "train --policy.type=sf_tiny --policy.push_to_hub=false --policy.image_size=28 --policy.width=32 "
    "--policy.heads=2 --dataset.repo_id=local/data --num_workers=0 --batch_size=2 --steps=1 --log_freq=1"
)
HERE = "--output_dir={here}/run"
TRAIN = f"{FORCED} --dataset.root={{data}} --policy.forcing.cache={{features}} {HERE}"
LEROBOT = TRAIN.replace("train ", "lerobot-train ", 1)

FLAGS = [
    command("train", kind, f"{TRAIN} {flags}", says, about=flags)
    for kind, flags, says in (
        ("name", "--policy.forcing.los_weight=1", "Did you mean --policy.forcing.loss_weight?"),
        ("name", "--policy.forcing.weight=1", "is called forcing.loss_weight now"),
        ("name", "--policy.forcing.depth=3", "write --policy.forcing.site=blocks.3"),
        ("name", "--nosuch=1", "unrecognized arguments: --nosuch=1"),
        ("name", "stray", "unrecognized arguments: stray"),
        ("name", "--policy.type=sf_tinny", "Did you mean 'sf_tiny'"),
        ("name", "--policy.device=quantum", "Unknown device quantum"),
        ("type", "--steps=abc", "--steps: Couldn't parse 'abc' into an int"),
        ("type", "--steps=1.5", "--steps: Couldn't parse '1.5' into an int"),
        ("type", "--policy.forcing.loss_weight=abc", "Unknown schedule (and no number) 'abc'"),
        ("type", "--policy.forcing.pca_targets=maybe", "forcing.pca_targets: Couldn't parse 'maybe' into"),
        ("type", "--policy.forcing.cameras=left", "--policy.forcing.cameras: The given value='left' is not"),
        ("number", "--steps=0", "--steps must be at least 1; got 0"),
        ("number", "--steps=-5", "--steps must be at least 1; got -5"),
        ("number", "--batch_size=0", "--batch_size must be at least 1; got 0"),
        ("number", "--num_workers=-1", "--num_workers must be at least 0; got -1"),
        ("number", "--policy.n_action_steps=99", "n_action_steps must be 1 to chunk_size = 8, got 99"),
        ("number", "--policy.heads=3", "multiple of heads"),
        ("number", "--policy.image_size=30", "not a multiple of the patch size"),
        ("name", "--policy.forcing.site=block.3", "has no site"),
        ("number", "--policy.forcing.loss_weight=-1", "0 or more"),
        ("name", "--policy.forcing.site=blocks.99", "It has blocks.0 to blocks.4"),
        ("name", "--policy.forcing.loss=cosin", "Did you mean 'cosine'"),
        (
            "number",
            "--policy.forcing.loss_weight=linear:initial=1,final=0,end=0",
            "to a later step end; got 0 to 0",
        ),
        ("name", "--policy.forcing.norm=instance", "'layer' or 'batch'"),
        ("name", "--policy.forcing.teacher=pixels", "is of teacher 'untrained-tiny', not 'pixels'"),
        ("missing", "--policy.forcing.cache={here}/none", "none holds no feature cache"),
        ("missing", "--policy.forcing.cache={begun}", "begun holds an unfinished feature cache"),
        ("foreign", "--policy.forcing.cache={plain}", "holds no feature cache"),
        ("foreign", "--policy.forcing.cache={raw} --policy.forcing.pca_targets=true", "no PCA coefficients"),
        ("foreign", "--dataset.root={other}", "is of another data set"),
        ("missing", "--dataset.root={here}/none", "none could not be read, here or from the Hub"),
        ("foreign", "--dataset.root={plain}", "plain.txt is not a folder"),
        ("number", "--dataset.episodes=[99]", "has the episodes 0 to 2; --dataset.episodes names 99"),
        ("taken", "--output_dir={run}", "Its last checkpoint is of step 1. To continue from it"),
        ("taken", "--output_dir={early}", "There is no checkpoint in {early} to continue from"),
        ("taken", "--output_dir={data}", "data exists. There is no checkpoint"),
        ("foreign", "--output_dir={plain}", "plain.txt exists"),
        ("foreign", "--output_dir={plain}/run", "plain.txt is not a folder"),
        ("missing", "--config_path={here}/none.json", "none.json cannot be read"),
        ("foreign", "--config_path={plain}", "plain.txt cannot be read"),
        ("missing", "--resume=true", "config_path"),
        ("name", "--policy.path={policy}", "Cannot specify both --policy.path and --policy.type"),
    )
]

ONLINE = [
    command("train", kind, f"{FORCED} --dataset.root={{data}} {HERE} {flags}", says, about=flags)
    for kind, flags, says in (
        ("name", "--policy.forcing.teacher=nobody", "Unknown teacher (and no file or folder) 'nobody'"),
        ("missing", "--policy.forcing.teacher=dinov2-small", "could not be fetched from the Hub"),
        ("missing", "--policy.forcing.teacher_checkpoint={here}/none", "no such file or folder"),
        ("missing", "--policy.forcing.pca_targets=true", "needs a compressed cache"),
        ("missing", "--policy.forcing.alignments={here}/none.yaml", "none.yaml cannot be read"),
        ("damaged", "--policy.forcing.alignments=[{", "while parsing"),
        ("type", "--policy.forcing.alignments=[blocks.1]", "is a mapping of options"),
        ("missing", "--policy.forcing.teacher=pixels --policy.forcing.standardize=true", "forcing.cache"),
    )
]

PATHS = [
    command("train", "missing", "train", "Say which data set: --dataset.repo_id"),
    *(
        command(
            "train",
            kind,
            f"train --policy.path={path} --policy.push_to_hub=false --dataset.repo_id=local/data "
            f"--dataset.root={{data}} --num_workers=0 --batch_size=2 --steps=1 --log_freq=1 {HERE} "
            "--policy.forcing.cache={features}",
            says,
            prepare=copied("small", *steps),
        )
        for kind, path, says, steps in (
            ("missing", "{here}/none", "none", ()),
            ("foreign", "{data}", "config.json", ()),
            ("foreign", "{plain}", "plain.txt", ()),
            ("damaged", "{here}/small", "--policy.path={here}/small", (cut("small/config.json"),)),
            ("encoding", "{here}/small", "small", (flipped("small/config.json"),)),
            (
                "foreign",
                "{here}/small",
                "diffusion",
                (changed("small/config.json", '"tiny"', '"diffusion"'),),
            ),
            ("damaged", "{here}/small", "the policy {here}/small", (cut("small/model.safetensors"),)),
            ("missing", "{here}/small", "model.safetensors", (without("small/model.safetensors"),)),
            ("foreign", "{here}/small", "the policy {here}/small", (holds("small/model.safetensors", "no"),)),
        )
    ),
]

DAMAGED = [
    command(
        "train", kind, TRAIN.replace("{" + name + "}", "{here}/" + name), says, prepare=copied(name, step)
    )
    for kind, name, step, says in (
        ("damaged", "features", flipped("features/shard-00000.safetensors"), "is damaged"),
        ("damaged", "features", cut("features/codec.safetensors"), "is damaged"),
        ("damaged", "features", without("features/shard-00000.safetensors"), "is missing"),
        ("encoding", "features", flipped("features/manifest.json"), "manifest.json is damaged"),
        ("damaged", "data", cut("data/meta/info.json"), "could not be read"),
        ("damaged", "data", cut("data/data/*/*.parquet"), "the data set {here}/data"),
    )
]

LIMITED = [
    command(
        "train",
        "permission",
        TRAIN.replace("{here}/run", "{here}/shut/run"),
        "may not be written to",
        prepare=mode("shut", 0o555),
        under="no rights",
    ),
]

LEROBOTS = [
    command("lerobot-train", kind, f"{LEROBOT} {flags}", says, about=flags, under="a process")
    for kind, flags, says in (
        ("missing", "--policy.forcing.cache={here}/none", "none holds no feature cache"),
        ("number", "--policy.forcing.site=blocks.99", "has no site"),
        ("foreign", "--dataset.root={other}", "is of another data set"),
    )
]

CASES: list[Case] = [*FLAGS, *ONLINE, *PATHS, *DAMAGED, *LIMITED, *LEROBOTS]
