"""``compare``, ``compare status``, ``compare transfer``."""

import json

from malformed.case import Case, command
from malformed.damage import holds

FLAGS = "-- --policy.type=tiny --policy.device=cpu --dataset.repo_id=local/d --dataset.root={data} --steps=4"
COMPARE = "compare --out {here}/c --teacher untrained-tiny"

CASES: list[Case] = [
    command("compare", kind, f"{COMPARE} {options} {FLAGS}", says, about=options)
    for kind, options, says in (
        ("name", "--arms plain forsed", "Did you mean 'forced'"),
        ("name", "--teacher vgtt-1b", "vggt-1b"),
        ("type", "--seeds one", "--seeds"),
        ("type", "--fractions half", "--fractions"),
        ("number", "--seeds 1 1", "none twice; got 1, 1"),
        ("number", "--seeds -1", "whole numbers from 0"),
        ("number", "--fractions 0", "above 0 and up to 1; got 0.0"),
        ("number", "--fractions 2", "above 0 and up to 1; got 2.0"),
        ("number", "--evaluations 0", "--evaluations must be at least 1; got 0"),
        ("number", "--evaluations 9", "9 evaluations do not fit into 4 steps"),
        ("number", "--episodes 0", "--episodes must be at least 1; got 0"),
        ("number", "--heldout-frames 0", "--heldout-frames must be at least 1; got 0"),
        ("number", "--workers 0", "--workers must be at least 1; got 0"),
        ("number", "--holdout 0", "above 0 and below 1; got 0.0"),
        ("number", "--holdout 1", "above 0 and below 1; got 1.0"),
        ("number", "--holdout-episodes 99", "names 99, which is not among"),
        ("name", "--job gpu", "--job takes name=value"),
        ("missing", "--arms-file {here}/none.yaml", "none.yaml cannot be read"),
        ("foreign", "--arms-file {plain}", "plain.txt"),
    )
]
CASES += [
    command("compare", kind, f"{COMPARE} {FLAGS} {flags}", says, about=flags)
    for kind, flags, says in (
        ("name", "--stepz=3", "Did you mean --steps"),
        ("name", "--policy.forcing.layr=3", "--policy.forcing.layer"),
        ("name", "stray", "'stray' is none"),
        ("taken", "--dry-run", "--dry-run is an option of compare: give it before --"),
        ("taken", "--seed=3", "--seed is not for the command of a comparison"),
        ("taken", "--output_dir=x", "--output_dir is not for the command"),
        ("taken", "--policy.forcing.cache=x", "the comparison stores features itself"),
        ("taken", "--dataset.eval_split=0.1", "--dataset.eval_split is not for the command"),
        ("number", "--policy.chunk_size=0", "chunk_size"),
    )
]
CASES += [
    command(
        "compare", kind, f"{COMPARE} --arms plain --arms-file {{here}}/arms.yaml {FLAGS}", says, prepare=file
    )
    for kind, says, file in (
        ("damaged", "not readable as YAML", holds("arms.yaml", "- name: [")),
        ("encoding", "arms.yaml", holds("arms.yaml", b"\xff\xfe\x00")),
        ("type", "line 1: a list of arms begins with -", holds("arms.yaml", "name: a\n")),
        ("name", "line 2: Unknown key of an arm 'steps'", holds("arms.yaml", "- name: a\n  steps: 4\n")),
        ("name", "line 2: Unknown role 'judge'", holds("arms.yaml", "- name: a\n  role: judge\n")),
        (
            "missing",
            "does not say whose depth they are from",
            holds("arms.yaml", "- name: near\n  forcing: {points: alone}\n"),
        ),
        ("name", "The arm 'early': ", holds("arms.yaml", "- name: early\n  forcing: {layr: 3}\n")),
        ("type", "forcing is a mapping", holds("arms.yaml", "- name: a\n  forcing: 3\n")),
        ("missing", "is empty", holds("arms.yaml", "")),
    )
]
CASES += [
    command("compare", "missing", f"{COMPARE} -- --policy.type=tiny", "which data set"),
    command("compare", "missing", "compare --out {here}/c", "which data set"),
    command(
        "compare",
        "foreign",
        f"compare --out {{plain}} --teacher untrained-tiny {FLAGS}",
        "plain.txt is not a",
    ),
    command(
        "compare", "taken", f"compare --out {{features}} --teacher untrained-tiny {FLAGS}", "is not empty"
    ),
    command(
        "compare",
        "taken",
        f"{COMPARE} {FLAGS}",
        "already holds another comparison",
        prepare=holds("c/comparison.json", json.dumps({"seeds": [7]})),
    ),
    command(
        "compare",
        "damaged",
        f"{COMPARE} {FLAGS}",
        "comparison.json is damaged",
        prepare=holds("c/comparison.json", '{"seeds": '),
    ),
    command("compare status", "missing", "compare status --out {here}/none", "There is no folder"),
    command("compare status", "foreign", "compare status --out {data}", "holds no comparison"),
    command("compare status", "name", "compare statuz --out {here}", "Did you mean 'status'"),
    command(
        "compare status",
        "foreign",
        "compare status --out {here}/c",
        "does not hold a comparison of this version",
        prepare=holds("c/comparison.json", '{"seeds": [0]}'),
    ),
]
CASES += [
    command(
        "compare transfer", kind, f"compare transfer {options} -- --env.camera=beyond", says, about=options
    )
    for kind, options, says in (
        ("missing", "--of {here}/none --out {here}/o", "There is no folder"),
        ("foreign", "--of {data} --out {here}/o", "holds no comparison"),
        ("foreign", "--of {here} --out {plain}", "plain.txt is not a"),
        ("number", "--of {here} --out {here}/o --workers 0", "--workers must be at least 1; got 0"),
    )
]
