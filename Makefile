# `make demo` and `make test` are all a newcomer needs; each installs what it lacks.
PYTHON ?= python3.12
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export MUJOCO_GL ?= osmesa
# Threads that wait must not spin: on a busy machine that is slower than one thread.
export OMP_WAIT_POLICY ?= PASSIVE
# LEROBOT=main: the tests on LeRobot's next release, where the archive of its main branch lies beside the project.
LEROBOT ?= locked
TESTED := $(if $(filter main,$(LEROBOT)),.venv-main,$(VENV))
# Nothing after installation may need the network.
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: setup demo test test-system test-lerobot check bench tables lock clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

demo: setup
	@$(OFFLINE) $(BIN)/spatial-forcing demo

# The unit tests; those that start whole programs are test-system's. Of files that are named, all.
PYTEST = $(OFFLINE) OMP_NUM_THREADS=1 $(TESTED)/bin/python -m pytest -q -n 2 --dist loadfile

test: $(TESTED)/.ready
	@$(PYTEST) $(if $(TESTS),$(TESTS),-m "not system")

test-system: setup
	@$(PYTEST) -m system

.venv-main/.ready: $(READY) scripts/lerobot_main.sh
	@VENV="$(VENV)" bash scripts/lerobot_main.sh
	@touch $@

# LeRobot's own test suite must not notice us.
test-lerobot: setup
	@$(OFFLINE) $(BIN)/python scripts/lerobot_suite $(SUITE)

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright

bench: setup
	@$(OFFLINE) $(BIN)/python benchmarks/step_time.py

# The tables of policies and teachers in the docs, from their records.
tables: setup
	@$(BIN)/python scripts/tables.py

lock:
	@bash scripts/lock.sh

clean:
	rm -rf $(VENV) .venv-main outputs dist
