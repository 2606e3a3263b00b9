# NVIDIA GPUs; the host needs the driver and the NVIDIA container toolkit, nothing of CUDA.
#   docker build -f launch/docker/gpu.Dockerfile -t IMAGE .
#   docker run --rm --gpus all --ipc=host IMAGE
FROM python:3.11.14-slim-bookworm

WORKDIR /lapa
# The pinned set first: the layer is kept while only the code changes.
COPY requirements/base.txt requirements/cuda.txt requirements/
RUN pip install --no-cache-dir -r requirements/cuda.txt
COPY setup.py pyproject.toml README.md ./
COPY lapa_jax lapa_jax
COPY data_pipelines data_pipelines
COPY experiments experiments
COPY launch launch
RUN pip install --no-cache-dir --no-deps -e .

ENV PYTHONUNBUFFERED=1 \
    JAX_PLATFORMS=cuda,cpu \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["lapa", "doctor", "--expect", "gpu"]
