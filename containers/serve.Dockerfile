# Teacher and evaluation with vLLM on NVIDIA GPUs:
#   docker build -f containers/serve.Dockerfile -t distill-serve .
#   docker run --gpus all --ipc host -v "$PWD/runs:/runs" distill-serve select 7b
# --ipc host: the processes of tensor parallelism share memory.
ARG BASE=nvidia/cuda:13.0.1-devel-ubuntu24.04
FROM ${BASE}

ENV PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1 \
    HF_HOME=/cache/huggingface \
    DISTILL_RUNS=/runs \
    PATH=/opt/distill/bin:$PATH

# devel: vLLM's kernels are compiled for the GPU that is there. bubblewrap: grading of programs.
RUN apt-get update \
    && apt-get install -y --no-install-recommends \
        bubblewrap build-essential git python3 python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/distill

WORKDIR /src
COPY constraints.txt ./
COPY constraints ./constraints
RUN pip install -c constraints/serve-cuda.txt vllm
COPY pyproject.toml README.md LICENSE ./
COPY distill ./distill
COPY teachers ./teachers
COPY students ./students
COPY recipes ./recipes
RUN pip install -c constraints/serve-cuda.txt ".[vllm]"

VOLUME ["/runs", "/cache"]
WORKDIR /work
ENTRYPOINT ["distill"]
CMD ["--help"]
