#!/usr/bin/env bash
# Makes .venv-main: LeRobot's next release, from the archive of its main branch beside the project, and everything else
# as in .venv, whose packages it sees. For `make test LEROBOT=main`.
set -euo pipefail
cd "$(dirname "$0")/.."
archive="${LEROBOT_ARCHIVE:-../shared/lerobot/lerobot-main.tar.gz}"
venv=.venv-main

if [ ! -f "$archive" ]; then
  echo "$archive is not there: LeRobot's main branch cannot be installed. Say where it is: LEROBOT_ARCHIVE=<file> make ..." >&2
  exit 1
fi
echo "Making $venv with LeRobot of $archive"
rm -rf "$venv"
"$VENV/bin/python" -m venv --without-pip "$venv"
packages=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
below=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
echo "import site; site.addsitedir('$below')" > "$packages/below.pth"

source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
tar xzf "$archive" -C "$source"
if [ ! -f "$source/setup.py" ]; then # it holds nothing but what the index shows of LeRobot
  echo 'from setuptools import setup; setup(long_description="", long_description_content_type="text/plain")' > "$source/setup.py"
fi
"$VENV/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation "$source"
"$VENV/bin/uv" pip install -q --python "$venv/bin/python" --no-deps --no-build-isolation -e .
"$venv/bin/python" -c 'import lerobot; print("LeRobot", lerobot.__version__, "in", lerobot.__path__[0])'
