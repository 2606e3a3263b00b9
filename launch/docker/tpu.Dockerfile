# Cloud TPUs, on TPU VMs and GKE. From the root of the repository:
#   docker build -f launch/docker/tpu.Dockerfile -t IMAGE . && docker push IMAGE
FROM python:3.11.14-slim-bookworm

WORKDIR /lapa
# The pinned set first: the layer is kept while only the code changes.
COPY requirements/base.txt requirements/gcs.txt requirements/tpu.txt requirements/
RUN pip install --no-cache-dir -r requirements/tpu.txt
COPY setup.py pyproject.toml README.md ./
COPY lapa_jax lapa_jax
COPY data_pipelines data_pipelines
COPY experiments experiments
COPY launch launch
RUN pip install --no-cache-dir --no-deps -e .

ENV PYTHONUNBUFFERED=1 \
    JAX_PLATFORMS=tpu,cpu
CMD ["lapa", "doctor", "--expect", "tpu"]
