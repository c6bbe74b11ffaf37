"""``collect``, ``demo``, ``eval``, ``probe``, ``report`` and ``doctor``."""

import json

from malformed.case import Case, command
from malformed.damage import changed, copied, cut, flipped, holds, mode, without

DEMOS = "collect --out {here}/d --episodes 2 --frames 2 --workers 1"
DEMO = "demo --out {here}/d"
EVAL = "eval --checkpoint {policy} --episodes 1"
EVAL_HERE = "eval --checkpoint {here}/policy --episodes 1"

SPEC = {"spec": {"tasks": ["push-v3"]}, "versions": {}}
NOTE = "comparison.json"
SETTINGS = {"tasks": ["reach-v3"], "steps": 1}

COLLECT = [
    command("collect", kind, f"{DEMOS} {options}", says, about=options)
    for kind, options, says in (
        ("type", "--episodes many", "--episodes"),
        ("type", "--seed x", "--seed"),
        ("type", "--frames 1.5", "--frames"),
        ("number", "--episodes 0", "episodes must be at least 1; got 0"),
        ("number", "--episodes -3", "episodes must be at least 1; got -3"),
        ("number", "--frames 0", "frames must be at least 1; got 0"),
        ("number", "--seed -1", "seed must be at least 0; got -1"),
        ("number", "--workers 0", "at least one process"),
        ("number", "--workers -2", "at least one process"),
        ("size", "--size 8", "size must be at least 16; got 8"),
        ("size", "--size -112", "size must be at least 16; got -112"),
        ("full disk", "--size 1000000", "needs about"),
        ("full disk", "--episodes 1000000000000", "needs about"),
        ("name", "--tasks reech-v3", "Did you mean 'reach-v3'"),
        ("name", "--tasks reach-v3 reach-v3", "none twice"),
        ("name", "--tasks ''", "Unknown Meta-World task ''"),
        ("name", "--start middle", "Unknown start 'middle'"),
        ("name", "--camera moving", "Unknown camera mode 'moving'"),
        ("foreign", "--out {plain}", "plain.txt is not a folder"),
        ("foreign", "--out {plain}/d", "plain.txt is not a folder"),
        ("foreign", "--out /proc/self/d", "cannot be"),
        ("taken", "--out {data}", "is not empty and holds no collection of demonstrations (no demos.json)"),
        (
            "taken",
            "--out {features}",
            "is not empty and holds no collection of demonstrations (no demos.json)",
        ),
    )
]
COLLECT += [
    command("collect", kind, DEMOS, says, prepare=holds("d/demos.json", content))
    for kind, content, says in (
        ("taken", json.dumps(SPEC), "already holds another collection of demonstrations (spec"),
        ("damaged", '{"spec": ', "demos.json is damaged"),
        ("foreign", "[1, 2]", "expected a JSON object, found a list"),
        ("encoding", b'{"spec": "\xff\xfe"}', "demos.json is damaged"),
    )
]
COLLECT += [
    command(
        "collect",
        "permission",
        DEMOS.replace("{here}/d", "{here}/shut/d"),
        "may not be written to",
        prepare=mode("shut", 0o555),
        under="no rights",
    ),
]

DEMO_CASES = [
    command("demo", kind, f"{DEMO} {options}", says, about=options)
    for kind, options, says in (
        ("type", "--loss-weight heavy", "--loss-weight"),
        ("type", "--steps 1e3", "--steps"),
        ("number", "--steps 0", "steps must be at least 1; got 0"),
        ("number", "--steps -10", "steps must be at least 1; got -10"),
        ("number", "--episodes 0", "episodes must be at least 1; got 0"),
        ("number", "--eval-episodes 0", "eval_episodes must be at least 1; got 0"),
        ("number", "--loss-weight -1", "weight"),
        ("number", "--loss-weight nan", "weight"),
        ("number", "--loss-weight inf", "weight"),
        ("number", "--workers 0", "at least one process"),
        ("number", "--seed -1", "seed must be at least 0; got -1"),
        ("name", "--tasks reech-v3", "Did you mean 'reach-v3'"),
        ("name", "--teacher vgtt-1b", "Did you mean 'vggt-1b'"),
        ("device", "--device cuda:99", "Available: cpu"),
        ("device", "--device nonsense", "is not a device"),
        ("foreign", "--out {plain}", "plain.txt is not a folder"),
        ("foreign", "--out {plain}/d", "plain.txt is not a folder"),
        ("taken", "--out {data}", "is not empty and holds no demo"),
    )
]
DEMO_CASES += [
    command("demo", kind, DEMO, says, prepare=holds(f"d/{name}", content))
    for kind, name, content, says in (
        ("taken", "settings.json", json.dumps(SETTINGS), "already holds another demo ("),
        ("damaged", "settings.json", '{"tasks"', "settings.json is damaged"),
        ("encoding", "settings.json", b"\xff\xff", "settings.json is damaged"),
        ("foreign", "settings.json", "[]", "expected a JSON object, found a list"),
    )
]
DEMO_CASES += [
    command(
        "demo",
        "permission",
        DEMO.replace("{here}/d", "{here}/shut/d"),
        "may not be written to",
        prepare=mode("shut", 0o555),
        under="no rights",
    ),
]

EVALS = [
    command("eval", kind, f"{EVAL} {options}", says, about=options)
    for kind, options, says in (
        ("type", "--episodes few", "--episodes"),
        ("number", "--episodes 0", "at least one episode; got 0"),
        ("number", "--episodes -1", "at least one episode; got -1"),
        ("number", "--seed -1", "seed must be at least 0; got -1"),
        ("name", "--task reech-v3", "Did you mean 'reach-v3'"),
        ("name", "--task ''", "Name a task"),
        ("device", "--device cuda:99", "Available: cpu"),
        ("device", "--device nonsense", "is not a device"),
        ("foreign", "--out {plain}", "plain.txt is not a folder"),
        ("foreign", "--out {plain}/e", "plain.txt is not a folder"),
        ("missing", "--checkpoint {here}/none", "is not a policy checkpoint: it has no config.json"),
        ("foreign", "--checkpoint {plain}", "is not a policy checkpoint"),
        ("foreign", "--checkpoint {data}", "is not a policy checkpoint"),
        ("name", "--checkpoint {run}", "Did you mean"),
        ("foreign", "--checkpoint {seven}", "action"),
        ("number", "--workers 0", "--workers must be at least 1; got 0"),
        ("number", "--batch-size 0", "--batch-size must be at least 1; got 0"),
        ("number", "--threads -1", "--threads must be at least 1; got -1"),
        ("number", "--videos -1", "--videos must be at least 0; got -1"),
        ("number", "--patience 0", "--patience is a number of seconds above 0"),
        ("name", "--rendering bright", "--rendering"),
        ("foreign", "--rendering cheap", "--rendering cheap is for LIBERO"),
        ("number", "--patience nan", "--patience is a number of seconds above 0"),
        ("foreign", "--policies mine={policy}", "Give --policies or --checkpoint, not both"),
        ("missing", "--beside {here}/none", "holds no finished evaluation (no eval.json)"),
        ("foreign", "--beside {data}", "holds no finished evaluation (no eval.json)"),
        ("missing", "--dataset {here}/none", "does not exist"),
        ("foreign", "--dataset {plain}", "is not a LeRobotDataset"),
        ("taken", "--out {data}", "is not empty and holds no evaluation (no plan.json)"),
        ("name", "-- --env.type=nowhere", "nowhere"),
        ("name", "-- --env.task=reach-v3", "Say which environment"),
        ("name", "-- --env.type=sf_metaworld --env.sise=3", "--env.s"),
        ("type", "-- --env.type=sf_metaworld --env.size=large", "size"),
        ("number", "-- --env.type=sf_metaworld --env.size=-2", "size must be at least 16; got -2"),
        ("type", "-- --env.type=sf_metaworld --rename_map=no", "rename_map"),
        ("foreign", "-- --env.type=sf_metaworld --seed=3", "say --seed before --"),
        ("type", "-- --env.type=sf_metaworld --policy.width=wide", "cannot be loaded"),
    )
]
EVALS += [
    command("eval", kind, f"eval --episodes 1 {options}", says, about=options)
    for kind, options, says in (
        ("missing", "", "Name the policies to evaluate"),
        ("name", "--policies mine", "given as name=folder"),
        ("name", "--policies a={policy} a={policy}", "is taken"),
        ("name", "--policies a/b={policy}", "made of letters, digits"),
        ("name", "--policies ..={policy}", "made of letters, digits"),
        ("missing", "--policies a={here}/none/there", "does not exist"),
    )
]
EVALS += [
    command("eval", kind, EVAL + " --out {here}/e", says, prepare=holds("e/plan.json", content))
    for kind, content, says in (
        ("taken", json.dumps({"episodes": 3}), "already holds another evaluation ("),
        ("damaged", '{"episodes', "plan.json is damaged"),
        ("foreign", "[]", "expected a JSON object, found a list"),
    )
]
EVALS += [
    command("eval", kind, EVAL + " --beside {here}/b", says, prepare=holds("b/eval.json", content))
    for kind, content, says in (
        ("damaged", '{"episodes', "eval.json is damaged"),
        ("foreign", "{}", "has no 'created'"),
    )
]
EVALS += [
    command("eval", kind, EVAL_HERE, says, prepare=copied("policy", step))
    for kind, step, says in (
        ("damaged", cut("policy/config.json"), "cannot be loaded"),
        ("encoding", flipped("policy/config.json"), "cannot be loaded"),
        ("foreign", holds("policy/config.json", "[]"), "cannot be loaded"),
        ("foreign", holds("policy/config.json", "{}"), "cannot be loaded"),
        ("foreign", changed("policy/config.json", '"tiny"', '"huge"'), "cannot be loaded"),
        ("foreign", changed("policy/config.json", '"width": 32', '"width": 64'), "cannot be loaded"),
        ("foreign", changed("policy/config.json", '"width": 32', '"width": [32]'), "cannot be loaded"),
        ("damaged", cut("policy/model.safetensors"), "cannot be loaded"),
        ("damaged", without("policy/model.safetensors"), "cannot be loaded"),
        ("foreign", holds("policy/model.safetensors", "no tensors"), "cannot be loaded"),
        ("damaged", without("policy/policy_preprocessor.json"), "cannot be loaded"),
        ("damaged", cut("policy/policy_preprocessor.json"), "cannot be loaded"),
        ("damaged", cut("policy/policy_postprocessor*.safetensors"), "cannot be loaded"),
        (
            "foreign",
            changed("policy/config.json", "observation.images.left", "observation.images.top"),
            "observation.images.top",
        ),
    )
]
EVALS += [
    command(
        "eval",
        "permission",
        EVAL + " --out {here}/shut/e",
        "may not be written to",
        prepare=mode("shut", 0o555),
        under="no rights",
    ),
    command(
        "eval",
        "permission",
        EVAL_HERE,
        "cannot be loaded",
        prepare=copied("policy", mode("policy/model.safetensors", 0o000)),
        under="no rights",
    ),
]

RESULTS = [
    command("report", kind, "report --out {here}/r", says, prepare=holds("r/results.json", content))
    for kind, content, says in (
        ("damaged", '{"title": ', "results.json is damaged"),
        ("damaged", "", "results.json is damaged"),
        ("encoding", b"\xff{}", "results.json is damaged"),
        ("foreign", "[]", "expected a JSON object, found a list"),
        ("foreign", "{}", "has no 'title'"),
        ("foreign", '{"title": 3}', "title"),
        ("size", "[" * 100_000, "results.json is damaged"),
    )
]
RESULTS += [
    command("report", "missing", "report --out {here}/none", "There is no folder {here}/none"),
    command("report", "foreign", "report --out {plain}", "There is no folder {plain}"),
    command("report", "foreign", "report --out {data}", "holds no comparison and no demo"),
    command("report", "foreign", "report --out {run}", "is a training run, and the folder of a comparison"),
]

PROBES = [
    command("probe", "missing", "probe --comparison {here}/none", "There is no folder {here}/none"),
    command("probe", "foreign", "probe --comparison {plain}", "There is no folder {plain}"),
    command("probe", "foreign", "probe --comparison {data}", "holds no comparison and no demo"),
    command("probe", "foreign", "probe --comparison {run} --dataset {data}", "leave --dataset out"),
    command("probe", "foreign", "probe --policies mine --dataset {data}", "given as name=folder"),
    command(
        "probe", "foreign", "probe --policies mine={run} --dataset {data} --heads linaer", "mean 'linear'"
    ),
    command("probe", "missing", "probe --policies mine={here}/none --dataset {data}", "does not exist"),
    command("probe", "missing", "probe --policies mine={run}", "Name the data set to probe on"),
    command("probe", "missing", "probe --dataset {data}", "Name the policies to probe"),
    command("probe", "missing", "probe", "Name the policies to probe"),
    *(
        command(
            "probe", kind, "probe --comparison {here}/r", says, prepare=holds("r/comparison.json", content)
        )
        for kind, content, says in (
            ("damaged", '{"flags"', "comparison.json is damaged"),
            ("encoding", b'{"flags": "\xff"}', "comparison.json is damaged"),
            ("foreign", "[]", "expected a JSON object, found a list"),
            ("foreign", "{}", "does not hold a comparison of this version"),
        )
    ),
]

DOCTORS = [
    command("doctor", "name", "doctor --teacher nobody", "nobody"),
    command(
        "doctor", "missing", "doctor --dataset {here}/none", "none does not exist. Give a data set's folder"
    ),
]

# What is there but does not load is no malformed input: `inspect` says so, with exit status 1.
INSPECTS = [
    command("inspect", "missing", "inspect {here}/none", "No file or folder"),
    command("inspect", "missing", "inspect", "Folder or file to look at"),
    command("inspect", "name", "inspect {run} --kee x", "--kee"),
]

CASES: list[Case] = [*COLLECT, *DEMO_CASES, *EVALS, *RESULTS, *PROBES, *DOCTORS, *INSPECTS]
