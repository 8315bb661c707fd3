# The image of every node of a GPU cluster (cluster.yaml, serve_configs/kuberay/):
#   docker build -t REGISTRY/llm4sbr-ray:0.1.0 . && docker push REGISTRY/llm4sbr-ray:0.1.0
# Without GPUs: docker build --build-arg EXTRA=cpu ...
#
# A plain Python image is enough: torch and vLLM bring CUDA's libraries, the host brings the driver.
FROM python:3.11-slim-bookworm

# Compilers: Triton and vLLM build small kernels when an engine starts. wget: KubeRay's probes. rsync: ray up.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc g++ git make openssh-client procps rsync wget \
    && rm -rf /var/lib/apt/lists/*

RUN useradd --create-home --uid 1000 ray && mkdir /app && chown ray /app
USER ray
WORKDIR /app

ARG EXTRA=gpu
# First what changes rarely, so that a change of code does not install everything again.
COPY --chown=ray pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY --chown=ray llm4sbr_ray/__init__.py llm4sbr_ray/__init__.py
RUN make install EXTRA=${EXTRA} && rm -rf ~/.cache
COPY --chown=ray llm4sbr_ray llm4sbr_ray
COPY --chown=ray jobs jobs
COPY --chown=ray configs configs
COPY --chown=ray serve_configs serve_configs

ENV PATH=/app/.venv/bin:$PATH \
    RAY_AUTH_MODE=token \
    PYTHONUNBUFFERED=1
