"""What a result was made with: versions, hardware, code revision, as one plain dict.

What cannot be known here is None, never a guess. No host name, user or path is recorded.
"""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

PACKAGES = (
    *("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "ml-collections", "numpy", "scipy"),
    *("tensorflow", "tensorflow-cpu", "tensorflow-datasets", "sentencepiece", "simplejpeg", "av"),
)


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Installed versions; packages that are not installed are absent."""
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _cpu_model() -> str | None:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.lower().startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or None


def _cores() -> int | None:
    # What this process may use, which in a container is less than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _devices() -> dict[str, Any]:
    import jax

    devices = jax.devices()
    memory = [stats.get("bytes_limit") for d in devices[:1] if (stats := d.memory_stats())]
    return {
        "platform": devices[0].platform,
        "kinds": sorted({device.device_kind for device in devices}),
        "count": len(devices),
        "processes": jax.process_count(),
        "memory_gib_each": round(memory[0] / 2**30, 1) if memory and memory[0] else None,
    }


def code_revision(path: str | Path = __file__) -> dict[str, Any] | None:
    """The git revision that holds a file or folder and whether tracked files differ; None if not in
    git."""
    path = Path(path).resolve()
    folder, name = (path, ".") if path.is_dir() else (path.parent, path.name)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=20,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    # An installed copy inside somebody else's repository is not at that repository's revision.
    if git("ls-files", "--error-unmatch", name) is None:
        return None
    revision = git("rev-parse", "HEAD")
    if revision is None:
        return None
    changes = git("status", "--porcelain", "--untracked-files=no")
    return {"revision": revision, "modified": None if changes is None else bool(changes)}


def host() -> dict[str, Any]:
    """What is known of the machine without asking JAX."""
    return {
        "cpu": _cpu_model(),
        "cores": _cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }


def describe_environment() -> dict[str, Any]:
    """Asks JAX for its devices, so call it where the run itself already did."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": package_versions(),
        "hardware": {**host(), "devices": _devices()},
        "code": code_revision(),
    }
