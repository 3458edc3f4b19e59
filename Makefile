# What people and CI run. Every target sets up what it needs in .venv by itself.
.DEFAULT_GOAL := help
.PHONY: help demo test test-large sanitize bench networks ipex figures lint wheel clean

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.ready
BUILT := $(VENV)/.built
CSRC := $(shell find csrc -name '*.cpp' -o -name '*.h')
SANITIZED = $(wildcard tests/test_contract.py tests/test_runtime.py tests/test_memory.py tests/test_*3d.py \
  $(foreach name,activate argmax cat grid_sample interpolate losses norm pad resample sample_patches softmax,\
  tests/test_$(name).py))
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=undefined

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(BUILT)  ## find nodules: in a phantom, or with CT=path in any chest CT
	$(VENV)/bin/volnet demo $(CT) --out demo --overwrite

test: $(BUILT)  ## the test suite
	$(RUN) -m pytest -q

test-large: $(BUILT)  ## over 2^31 elements: 20 GiB of memory, a quarter of an hour
	$(RUN) -m pytest -q -m large tests/large

# A build of its own, found first because the tests run from its folder. Python itself is not instrumented, so
# the run-time libraries are preloaded (libstdc++ for them to see exceptions), and its leaks are not ours.
sanitize: $(BUILT)  ## the operators' tests under the address and undefined-behaviour sanitizers (GCC)
	VOLNET_CXXFLAGS="-Werror -O1 -g1 -fno-omit-frame-pointer -fno-wrapv $(SANITIZERS)" VOLNET_LDFLAGS="$(SANITIZERS)" \
	  $(RUN) setup.py --quiet build --build-base build/sanitize --build-lib build/sanitize/lib
	cd build/sanitize/lib && \
	  LD_PRELOAD="$(foreach name,libasan.so libubsan.so libstdc++.so.6,$(shell $(CXX) -print-file-name=$(name)))" \
	  ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	  $(CURDIR)/$(RUN) -m pytest -q --import-mode=append --capture=sys \
	  $(addprefix $(CURDIR)/,$(SANITIZED))

bench: $(BUILT)  ## operators side by side with their peers; ONLY=conv3d for some; to benchmarks/results/ops.json
	mkdir -p benchmarks/results
	$(RUN) -m pytest benchmarks/ops.py -k "$(ONLY)" --benchmark-quiet --benchmark-json=benchmarks/results/ops.json

networks: $(BUILT)  ## whole networks side by side with everything that runs them; to benchmarks/results
	$(RUN) benchmarks/networks.py --out benchmarks/results

# IPEX has ended at torch 2.8, which volnet does not load with, and is no longer maintained: for measuring
# only. `volnet bench` finds it here by itself.
IPEX := torch==2.8.0 torchvision==0.23.0 intel-extension-for-pytorch==2.8.0
ipex:  ## an environment of its own for IPEX (2 GiB), with which `volnet bench` measures it as well
	$(PYTHON) -m venv --clear build/ipex
	build/ipex/bin/pip install --quiet --extra-index-url https://download.pytorch.org/whl/cpu \
	  $(IPEX) monai dynamic-network-architectures

figures: $(BUILT)  ## measures the tables of docs/ anew, an hour or two on a machine that does nothing else
	$(RUN) benchmarks/figures.py

lint: $(BUILT)  ## ruff, mypy, clang-format
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/clang-format --dry-run --Werror $(CSRC)

wheel: $(STAMP)  ## sdist and wheel, the wheel tried in an empty environment
	rm -rf dist
	$(RUN) -m build --no-isolation
	$(PYTHON) -m venv --clear build/wheel-venv
	build/wheel-venv/bin/pip install --quiet --constraint constraints.txt dist/*.whl
	cd build && wheel-venv/bin/python ../tests/smoke.py

clean:  ## everything that was built, and the environment
	rm -rf $(VENV) build dist demo volnet/_C*.so *.egg-info

$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (about a minute)"
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --constraint constraints.txt torch numpy setuptools wheel pybind11 ninja build
	@touch $@

$(BUILT): $(STAMP) setup.py $(CSRC)
	@echo "Building volnet (about a minute)"
	VOLNET_CXXFLAGS=-Werror $(VENV)/bin/pip install --quiet --no-build-isolation --constraint constraints.txt -e '.[dev]'
	@touch $@
