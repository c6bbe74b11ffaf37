# `make demo` and `make test` are all a newcomer needs; each installs what it lacks.
PYTHON ?= python3.12
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready
export MUJOCO_GL ?= osmesa
# Threads that wait must not spin: on a busy machine that is slower than one thread.
export OMP_WAIT_POLICY ?= PASSIVE
# Nothing after installation may need the network.
OFFLINE := HF_HUB_OFFLINE=1

.PHONY: setup demo test check bench tables lock clean

setup: $(READY)

$(READY): pyproject.toml requirements.lock scripts/setup.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash scripts/setup.sh
	@touch $@

demo: setup
	@$(OFFLINE) $(BIN)/spatial-forcing demo

test: setup
	@$(OFFLINE) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

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
	rm -rf $(VENV) outputs dist
