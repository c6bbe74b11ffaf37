#!/usr/bin/env bash
# Small policies on one task of LIBERO, on two cores (docs/libero.md): demonstrations of the scripted expert 14 min, with and without
# images on a tenth of them 15 min, with and without forcing on all of them 80 min. Each continues where it stopped.
#
#     bash recipes/libero_small.sh                     # into outputs/
set -euo pipefail

[ -f outputs/libero-demos/meta/info.json ] || \
  spatial-forcing libero collect --suite libero_object --tasks 3 --episodes 80 --size 128 --out outputs/libero-demos
small=(
  --policy.device=cpu --policy.push_to_hub=false --batch_size=16 --num_workers=0 --log_freq=50
  --dataset.repo_id=local/libero-demos --dataset.root=outputs/libero-demos
  --env.type=libero --env.task=libero_object "--env.task_ids=[3]" --env.observation_height=128 --env.observation_width=128
)
compare=(spatial-forcing compare --evaluations 1 --episodes 20)
"${compare[@]}" --out outputs/libero-blind --seeds 9 --arms plain --arms-file recipes/blind.yaml --no-controls --fractions 0.1 \
  --videos 0 --probe none -- --policy.type=tiny --steps=600 "${small[@]}"
"${compare[@]}" --out outputs/libero-small --seeds 0 --arms plain forced --no-controls --teacher vggt-tiny-sim -- \
  --policy.type=sf_tiny --policy.forcing.loss_weight=0.5 --policy.forcing.standardize=true --steps=3000 "${small[@]}"
