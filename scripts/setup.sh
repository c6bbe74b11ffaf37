#!/usr/bin/env bash
# Makes the virtual environment with the locked versions, and the software GL library if it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."

find_python() {
  # pyenv's shims exist for versions that are not selected, so ask each candidate whether it runs.
  for candidate in "${PYTHON:-python3.12}" python3.12 python3.13 python3 \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/3.12*/bin/python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.12 or newer was not found. Install it, or say where it is: make PYTHON=/path/to/python3.12" >&2
  exit 1
}

if ! "$VENV/bin/python" -c '' 2>/dev/null; then
  python=$(find_python)
  echo "Making $VENV with $("$python" --version)"
  "$python" -m venv "$VENV"
fi
echo "Installing the locked versions (about 5.5 GB on disk the first time)"
"$VENV/bin/python" -m pip install -q --disable-pip-version-check "uv>=0.9"
"$VENV/bin/uv" pip install -q --python "$VENV/bin/python" --require-hashes -r requirements.lock
"$VENV/bin/uv" pip install -q --python "$VENV/bin/python" --no-deps --no-build-isolation -e .

if ! ldconfig -p 2>/dev/null | grep -q libOSMesa && [ "$(uname)" = Linux ]; then
  install="apt-get install -y libosmesa6"
  if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing the software GL library (libosmesa6)"
    (apt-get update -qq && DEBIAN_FRONTEND=noninteractive $install -qq) >/dev/null
  else
    echo "The simulation renders in software with OSMesa, which is missing. Install it, then run make again: sudo $install" >&2
    exit 1
  fi
fi
