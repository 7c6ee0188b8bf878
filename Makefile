# SPDX-License-Identifier: Apache-2.0
# Every target does its own set-up in .venv and is quick when nothing has changed. Stamp files in .venv
# remember what is installed; they depend on pyproject.toml and constraints.txt.
#   make demo     train, evaluate, save, reload and time a ViT on pictures made here
#   make test     the whole test suite;           ARGS="tests/ops -k layer_norm" passes options to pytest
#   make bench    every benchmark with its peers; ARGS="-k vit" passes options to pytest
#   make lint     formatting, types, import arrows, stubs, tests/lint
#   make develop  editable install that rebuilds the C++ code on import
#   make stubs    write python/vision_accel/_C.pyi from the built module
#   make clean    remove everything that was built here
PYTHON ?= python3
VENV   := $(CURDIR)/.venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
INSTALL := $(PIP) install -c constraints.txt
export PATH := $(BIN):$(PATH)

CONFIG  := pyproject.toml constraints.txt
CXX_SRC := $(shell find CMakeLists.txt cmake csrc tests/simt -type f -not -name '*.py*')
# Modules are installed one by one: a new or removed one needs a new editable install.
PY_LIST := $(shell find python -name '*.py' | sort | cksum | cut -d' ' -f1)
BUILT   := $(VENV)/package-$(PY_LIST).stamp

.PHONY: demo test bench lint develop stubs clean
.DELETE_ON_ERROR:

demo: $(BUILT) $(VENV)/demo.stamp
	$(BIN)/vision-accel demo $(ARGS)

test: $(BUILT) $(VENV)/test.stamp
	$(BIN)/python -m pytest $(ARGS)

bench: $(BUILT) $(VENV)/bench.stamp
	@mkdir -p bench/out
	$(BIN)/python -m pytest bench -q --peers --benchmark-json=bench/out/latest.json $(ARGS)

lint: $(BUILT) $(VENV)/lint.stamp $(VENV)/test.stamp
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	find csrc tests/simt -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror
	$(BIN)/lint-imports --no-logo
	$(BIN)/python scripts/make_stubs.py --check
	$(BIN)/python -m pytest -q tests/lint

stubs: $(BUILT) $(VENV)/lint.stamp
	$(BIN)/python scripts/make_stubs.py

develop: $(VENV)/test.stamp $(VENV)/lint.stamp
	touch $(VENV)/develop
	rm -f $(VENV)/package-*.stamp
	$(MAKE) --no-print-directory $(BUILT)
	@echo "Ready. Activate it: . .venv/bin/activate"

clean:
	rm -rf .venv build dist bench/out demo_output .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .benchmarks

# torch comes first, so that nothing that needs it can choose another version. pip below 25.1 has no --group.
$(VENV)/base.stamp: $(CONFIG)
	@echo "setting up .venv (once; torch is a large download)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) install --upgrade 'pip>=25.1'
	@$(INSTALL) torch
	@$(INSTALL) --group build
	@touch $@

# The package itself: editable, so Python edits are live; C++ edits rebuild what they touch. Without CUDA, it
# holds the CUDA kernels compiled for the emulator of tests/simt.
$(BUILT): $(VENV)/base.stamp $(CXX_SRC)
	@echo "building vision_accel"
	@$(INSTALL) --no-build-isolation --config-settings=build-dir=build/develop \
	  --config-settings=cmake.define.VISION_ACCEL_SIMT=ON \
	  $(if $(wildcard $(VENV)/develop),--config-settings=editable.rebuild=true) --editable '.[train]'
	@rm -f $(VENV)/package-*.stamp
	@touch $@

$(VENV)/demo.stamp: $(VENV)/base.stamp
	@$(INSTALL) --group demo
	@touch $@

# torchvision has no CPU-only build that goes with torch's, and these three would pull it in: no dependencies.
$(VENV)/test.stamp: $(VENV)/base.stamp
	@echo "installing what the tests need"
	@$(INSTALL) --group test
	@$(INSTALL) --no-deps --group parity
	@touch $@

$(VENV)/bench.stamp: $(VENV)/base.stamp
	@echo "installing what the benchmarks need"
	@$(INSTALL) --group bench
	@touch $@

$(VENV)/lint.stamp: $(VENV)/base.stamp
	@echo "installing what the checks need"
	@$(INSTALL) --group lint
	@touch $@
