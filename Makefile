.DEFAULT_GOAL := help
.PHONY: help setup demo check fast-tests test test-all test-failed test-ray-floor vllm-env test-vllm lint chaos bench cuda-arithmetic gpu gpu-wheels clean

PYTHON ?= python3
BIN := .venv/bin
# Two workers, a file at a time, in the order that tests/conftest.py gives: files with slow tests come first.
PYTEST := $(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder
RAY_FLOOR := $(shell sed -n 's/.*"ray\[.*>=\([0-9.]*\)".*/\1/p' pyproject.toml)
RAY_FLOOR_PATH := $(CURDIR)/.venv/ray-floor:$(CURDIR)
GPU_PYTHON ?= 3.12
GPU_PLATFORMS := $(foreach libc,2_31 2_28 2_17,manylinux_$(libc)_x86_64) manylinux2014_x86_64
GPU_WHEELS := pydantic pydantic_core annotated-types typing-inspection llguidance pytest pluggy iniconfig
RAY_TESTS := tests/contracts/test_runners.py tests/cluster/test_ray_session.py tests/cluster/test_own_cluster.py tests/cluster/test_ray_runner.py tests/cluster/test_poison.py

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## a virtual environment with everything in it, at the versions of infra/constraints.txt

.venv/.ready: pyproject.toml infra/constraints.txt infra/oracles.txt
	@echo 'Installing into .venv: 3.3 GB, which takes a few minutes'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c infra/constraints.txt -e ".[test,dev,pdf]"
	$(BIN)/python -m pip install -q --no-deps -r infra/oracles.txt
	touch $@

demo: .venv/.ready ## a job on the built-in model, from pictures to a Parquet table
	$(BIN)/python -m pipeline demo

check: .venv/.ready ## lint, types, docstring examples and the fast tests, for while you edit
	+$(MAKE) --no-print-directory -j 2 -O lint fast-tests

fast-tests: .venv/.ready
	$(PYTEST) -m "not process and not slow and not vllm"

test: .venv/.ready ## all tests but those that take long by their nature
	$(PYTEST) -m "not slow and not vllm"

test-all: .venv/.ready ## every test but those of vLLM; an unexpected skip is an error
	$(PYTEST) -m "not vllm and not quick" -rs --check-skips --durations=20

test-failed: .venv/.ready ## once more, one after the other, the tests that failed in the last run
	$(BIN)/python -m pytest -q -m "not vllm and not quick" --last-failed --last-failed-no-failures none

test-ray-floor: .venv/ray-floor ## the tests of Ray, with the oldest version that pyproject.toml allows
	PYTHONPATH=$(RAY_FLOOR_PATH) $(BIN)/python -c 'import ray; assert ray.__version__.startswith("$(RAY_FLOOR)"), ray.__version__'
	PYTHONPATH=$(RAY_FLOOR_PATH) $(BIN)/python -m pytest -q $(RAY_TESTS)

.venv/ray-floor: .venv/.ready
	rm -rf $@
	$(BIN)/python -m pip install -q --no-deps --target $@ 'ray==$(RAY_FLOOR).*'

vllm-env: .venv-vllm/.ready ## a second virtual environment with vLLM's CPU build, for x86-64 Linux

.venv-vllm/.ready: infra/vllm/requirements.txt infra/vllm/torchvision_operators.py
	$(PYTHON) -m venv --clear .venv-vllm
	.venv-vllm/bin/python -m pip install -q -c infra/vllm/requirements.txt torch
	.venv-vllm/bin/python -m pip install -q --no-deps -r infra/vllm/requirements.txt
	cp infra/vllm/torchvision_operators.py .venv-vllm/lib/python3*/site-packages/
	cd .venv-vllm/lib/python3*/site-packages && echo import torchvision_operators > torchvision_operators.pth
	touch $@

test-vllm: $(if $(VLLM),,.venv-vllm/.ready) ## the tests of the vllm engine and of vLLM's server; with another vLLM: VLLM=path/to/python
	PYTHONPATH=. $(or $(VLLM),.venv-vllm/bin/python) -m pytest -q -m vllm tests/model/engines/test_vllm.py tests/contracts/test_engines.py

lint: .venv/.ready ## ruff, its formatter, and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

chaos: .venv/.ready ## a hundred kills of whatever runs, and every row counted; an hour
	PYTHONPATH=. $(BIN)/python -m tests.chaos --kills 100
	PYTHONPATH=. $(BIN)/python -m tests.chaos.poison
	PYTHONPATH=. $(BIN)/python -m tests.chaos.takeover

bench: .venv/.ready ## the benchmarks, shortened, and the table of tests/bench/README.md with what they measured
	PYTHONPATH=. $(BIN)/python tests/bench/run_all.py

cuda-arithmetic: .venv/.ready ## how fast the torch engine can be on H100, A100 and L4: counted and computed, not measured
	PYTHONPATH=. $(BIN)/python tests/bench/cuda_arithmetic.py

gpu: .venv/.ready ## what only a GPU can show, in eight minutes; a rehearsal without one: ARGS="--device cpu --toy"
	PYTHONPATH=. $(BIN)/python -m tests.gpu $(ARGS)

gpu-wheels: ## into build/gpu-wheels: what a machine with torch and transformers lacks for that (GPU_PYTHON=3.12)
	$(PYTHON) -m pip download -q --no-deps -c infra/constraints.txt -d build/gpu-wheels --only-binary=:all: \
	    --implementation cp --python-version $(GPU_PYTHON) $(addprefix --platform ,$(GPU_PLATFORMS)) $(GPU_WHEELS)
	du -sh build/gpu-wheels

clean: ## away with everything that was made here
	rm -rf .venv .venv-vllm build dist out ./*.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
