"""Settings with which tests compile faster; to be read before JAX starts."""

import importlib.metadata

JAX_VERSION = tuple(int(part) for part in importlib.metadata.version("jax").split(".")[:2])
# Compiling is most of what the tests do; without the fusion emitters it takes half as long. Newer
# releases have no other way, and end at a flag that they do not know.
QUICK = "--xla_cpu_use_fusion_emitters=false" if JAX_VERSION < (0, 11) else ""
# Programs are not optimised, and kept where JAX_COMPILATION_CACHE_DIR says.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    # Threads for programs. A collective on XLA's virtual devices holds one of each device until all
    # have come; those inside a loop and outside it are not in one order, so eight threads for eight
    # devices can all be held by half of two collectives each: after 40 seconds XLA aborts.
    "PJRT_NPROC": "32",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}
