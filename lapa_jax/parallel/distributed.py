"""Start-up of a multi-process run: explicit, once, before anything touches a device.

On one process, with no sign of a cluster in the environment, `initialize` starts nothing. It always
logs the devices, so that a run on the wrong machine is seen in its first lines.
"""

import os
from collections.abc import Mapping

import jax
from absl import logging

# Variables that a launcher sets on every process of a run; a count must exceed one to matter.
_PRESENT = ("JAX_COORDINATOR_ADDRESS", "COORDINATOR_ADDRESS", "MEGASCALE_COORDINATOR_ADDRESS")
_COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "JAX_NUM_PROCESSES")


def in_cluster(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether the environment says that this process is one of several."""
    if any(environ.get(name) for name in _PRESENT):
        return True
    # A job step of Slurm has SLURM_STEP_ID; the batch script around it has not.
    if "SLURM_NTASKS" in environ and "SLURM_STEP_ID" not in environ:
        environ = {k: v for k, v in environ.items() if k != "SLURM_NTASKS"}
    if any(environ.get(name, "1") not in ("", "1") for name in _COUNTS):
        return True
    return len(environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1


def initialize(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    multihost: bool | None = None,
    require_accelerator: bool = False,
    heartbeat_seconds: int = 60,
) -> None:
    """Connects the processes of a run; a second call is an error unless it has nothing to do.

    With no addresses given, jax.distributed finds them (Cloud TPU, GKE, Slurm, Open MPI). TPU pods
    that announce themselves only through their metadata server need multihost=True.
    """
    explicit = coordinator_address is not None
    if explicit and (num_processes is None or process_id is None):
        raise ValueError(
            f"coordinator_address={coordinator_address!r} needs num_processes and process_id, got "
            f"{num_processes} and {process_id}"
        )
    if multihost is False and explicit:
        raise ValueError(f"multihost=False contradicts coordinator_address={coordinator_address!r}")
    if explicit or multihost or (multihost is None and in_cluster()):
        if explicit:
            logging.info(
                "process %s of %s connects to %s", process_id, num_processes, coordinator_address
            )
        else:
            logging.info("connecting to the cluster that the environment describes")
        # A dead peer shows as a stalled collective; the heartbeat is what ends the process then.
        jax.distributed.initialize(
            coordinator_address=coordinator_address,
            num_processes=num_processes,
            process_id=process_id,
            heartbeat_timeout_seconds=heartbeat_seconds,
        )
    devices = jax.devices()
    logging.info(
        "process %d of %d: %d local of %d devices, %s (%s)",
        jax.process_index(),
        jax.process_count(),
        jax.local_device_count(),
        len(devices),
        devices[0].device_kind,
        devices[0].platform,
    )
    if require_accelerator and devices[0].platform == "cpu":
        raise RuntimeError(
            "require_accelerator is set, but JAX sees only CPU devices: install the jax[cuda12] or "
            "jax[tpu] extra, check JAX_PLATFORMS, or unset require_accelerator"
        )
