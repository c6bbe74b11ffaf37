#!/usr/bin/env bash
# A small policy with and without forcing on one task of LIBERO, on two cores (docs/libero.md): demonstrations of the
# scripted expert 14 min, the comparison about 45 min. Interrupted, the same command continues. LIBERO: docs/libero.md.
#
#     bash recipes/libero_small.sh                     # into outputs/
#     python scripts/keep_results.py outputs/libero-small libero_small --figures probe_sites
set -euo pipefail

[ -f outputs/libero-demos/meta/info.json ] || \
  spatial-forcing libero collect --suite libero_object --tasks 3 --episodes 80 --size 128 --out outputs/libero-demos
spatial-forcing compare --out outputs/libero-small --seeds 0 --arms plain forced --teacher vggt-tiny-sim \
  --evaluations 1 --episodes 20 -- \
  --policy.type=sf_tiny --policy.device=cpu --policy.push_to_hub=false \
  --policy.forcing.loss_weight=0.5 --policy.forcing.standardize=true \
  --dataset.repo_id=local/libero-demos --dataset.root=outputs/libero-demos \
  --steps=3000 --batch_size=16 --num_workers=0 --log_freq=50 \
  --env.type=libero --env.task=libero_object --env.task_ids='[3]' \
  --env.observation_height=128 --env.observation_width=128
