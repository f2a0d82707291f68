# make demo: the main job on the digits. make test: the tests. Both set up .venv first; what is installed is not installed again.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export RAY_USAGE_STATS_ENABLED := 0
export MLFLOW_DISABLE_TELEMETRY := true

.PHONY: install demo test test-slow fuzz chaos soak bench docs check format clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is needed; say which by PYTHON=/path/to/python"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: install
	$(BIN)/pcl-ray train digits

# One Ray per host: its tests run one after the other. All others need little of a machine, and each file stays with one process.
# A process of theirs that dies ends them: started again, the others would wait for it for ever.
test: install
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --max-worker-restart=0 tests/unit tests/runs tests/gloo tests/browser tests/gpu tests/fuzz
	$(BIN)/python -m pytest -m "not slow" tests/ray

test-slow: install
	$(BIN)/python -m pytest -m slow

# Damaged input of every kind: FUZZ=--count=20000, FUZZ="--target parquet --first 5000".
fuzz: install
	$(BIN)/python tests/fuzz/driver.py $(FUZZ)

# Faults one by one, then at random for some minutes; the same SEED is the same faults.
MINUTES ?= 10
SEED ?= 0
chaos: install
	$(BIN)/python -m pytest -m chaos tests/chaos
	$(BIN)/python tests/chaos/random_faults.py --minutes $(MINUTES) --seed $(SEED)

soak: install
	$(BIN)/python tests/chaos/soak.py --minutes 20 --json benchmarks/soak.json

# The machine should do nothing else meanwhile. QUICK=--quick: small sizes, a few minutes, no claims about speed.
bench: install
	for name in start mstep cpu_step scaling mstep_quality estep estep_scale estep_quality num_clusters sweep embed checkpoints time_to_accuracy; do $(BIN)/python benchmarks/$$name.py $(QUICK) --json benchmarks/$$name.json || exit 1; done

# The pages as a site, in site/: open site/index.html. A link that leads nowhere is an error. Nothing is fetched, search included.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/python .ci/house.py

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) site .pytest_cache .ruff_cache .hypothesis *.egg-info
