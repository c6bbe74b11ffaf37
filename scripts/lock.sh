#!/usr/bin/env bash
# Writes requirements.lock: every version with its hashes, and no address of an index.
set -euo pipefail
cd "$(dirname "$0")/.."
.venv/bin/uv pip compile pyproject.toml --extra dev --python-version 3.12 --generate-hashes \
  --no-emit-index-url --no-emit-find-links --no-header --no-annotate --universal -q -o requirements.lock
