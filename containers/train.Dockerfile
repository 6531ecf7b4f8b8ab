# The trainer, and all of distill but vLLM, on NVIDIA GPUs:
#   docker build -f containers/train.Dockerfile -t distill-train .
#   docker run --gpus all --ipc host -v "$PWD/runs:/runs" distill-train train 7b
# --ipc host: NCCL's processes share memory. Several nodes: docs/launching.md.
# On a machine without a GPU: --build-arg BASE=python:3.11-slim --build-arg SET=train-cpu
#   --build-arg EXTRAS=qlora --build-arg INDEX=https://download.pytorch.org/whl/cpu
ARG BASE=nvidia/cuda:13.0.1-base-ubuntu24.04
FROM ${BASE}

ARG SET=train-cuda
ARG EXTRAS=qlora,liger,deepspeed,ray
ARG INDEX=https://pypi.org/simple

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    DISTILL_RUNS=/runs \
    PATH=/opt/distill/bin:$PATH

# A compiler: triton builds its launchers with it. bubblewrap: grading of programs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        bubblewrap build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/distill

WORKDIR /src
COPY constraints.txt ./
COPY constraints ./constraints
# torch first and alone: the layer stays when only distill changes.
RUN pip install --extra-index-url ${INDEX} -c constraints/${SET}.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY distill ./distill
COPY teachers ./teachers
COPY students ./students
COPY recipes ./recipes
RUN pip install --extra-index-url ${INDEX} -c constraints/${SET}.txt ".[${EXTRAS}]"

VOLUME ["/runs", "/cache"]
WORKDIR /work
ENTRYPOINT ["distill"]
CMD ["--help"]
