#!/usr/bin/env bash
# OpenVLA-OFT with Spatial Forcing on LIBERO on one GPU: the setting of the paper's ablations.
#
#     bash recipes/openvla_oft_libero_one_gpu.sh spatial        # then object, goal, 10 (LIBERO-Long)
#
# As recipes/openvla_oft_libero.sh, with an eighth of its batch.
#
# Hardware   1 GPU of 80 GB
# Memory     computed: 59 GB with stored features, 62 GB with VGGT-1B online (benchmarks/openvla_cost.py); published: about 74 GB online
# Hours      computed: 15 for a suite's 150 000 steps at 40 % of 989 T operations a second (H100, bfloat16), data and evaluation apart (the same script)
# Expected   96.9 % on average: spatial 97.2, object 99.2, goal 96.8, long 94.2; without forcing 96.8, 94.8, 92.8, 86.2 (92.7).
#            arXiv 2510.12276, ablation of the target; after 50 000 steps 96.5 on average. Nobody has run this file yet.
set -euo pipefail

GPUS=1 exec bash "$(dirname "$0")/openvla_oft_libero.sh" "$@"
