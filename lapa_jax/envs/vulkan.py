"""Whether Vulkan can draw here, asked with the standard library alone.

On a CPU that is Mesa's lavapipe. SAPIEN needs one of 24.3 or later; of an earlier one it says
nothing but that no device can render.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import re
from pathlib import Path

_OLDEST = (24, 3)  # Mesa's, of a device that is a CPU
_CPU = 4  # VK_PHYSICAL_DEVICE_TYPE_CPU
_MENDS = (
    "apt-get install libvulkan1 mesa-vulkan-drivers, of 24.3 or later (on Debian 12: -t "
    "bookworm-backports)"
)


class _Application(ctypes.Structure):
    """VkApplicationInfo."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("name", ctypes.c_char_p),
        ("version", ctypes.c_uint),
        ("engine", ctypes.c_char_p),
        ("engine_version", ctypes.c_uint),
        ("api", ctypes.c_uint),
    ]


class _Instance(ctypes.Structure):
    """VkInstanceCreateInfo without layers and extensions."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("flags", ctypes.c_uint),
        ("application", ctypes.POINTER(_Application)),
        ("layers", ctypes.c_uint),
        ("layer_names", ctypes.c_void_p),
        ("extensions", ctypes.c_uint),
        ("extension_names", ctypes.c_void_p),
    ]


class _Driver(ctypes.Structure):
    """VkPhysicalDeviceDriverProperties."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("driver", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("info", ctypes.c_char * 256),
        ("conformance", ctypes.c_ubyte * 4),
    ]


class _Device(ctypes.Structure):
    """VkPhysicalDeviceProperties2, of which the end is not read."""

    _fields_ = [
        ("kind", ctypes.c_int),
        ("next", ctypes.c_void_p),
        ("api", ctypes.c_uint),
        ("driver", ctypes.c_uint),
        ("vendor", ctypes.c_uint),
        ("device", ctypes.c_uint),
        ("type", ctypes.c_int),
        ("name", ctypes.c_char * 256),
        ("rest", ctypes.c_ubyte * 2048),
    ]


@functools.cache
def devices() -> tuple[tuple[str, bool, str], ...] | None:
    """(name, whether it is a CPU, what its driver says of its version) of each; None where there is
    no Vulkan."""
    vulkan = _loader()
    if vulkan is None:
        return None
    application = _Application(kind=0, api=1 << 22 | 2 << 12)  # 1.2: drivers tell their version
    wanted = _Instance(kind=1, application=ctypes.pointer(application))
    instance = ctypes.c_void_p()
    if vulkan.vkCreateInstance(ctypes.byref(wanted), None, ctypes.byref(instance)):
        return ()  # there is no driver
    count, found = ctypes.c_uint(32), (ctypes.c_void_p * 32)()
    vulkan.vkEnumeratePhysicalDevices(instance, ctypes.byref(count), found)
    told = []
    for handle in found[: count.value]:
        driver = _Driver(kind=1_000_196_000)
        device = _Device(kind=1_000_059_001, next=ctypes.addressof(driver))
        vulkan.vkGetPhysicalDeviceProperties2(ctypes.c_void_p(handle), ctypes.byref(device))
        texts = (text.decode(errors="replace") for text in (device.name, driver.info))
        told.append((next(texts), device.type == _CPU, next(texts)))
    vulkan.vkDestroyInstance(instance, None)
    return tuple(told)


def missing() -> str:
    """What hinders pictures and what mends it, in one line; "" where nothing does."""
    found = devices()
    if not found:
        lacks = "no Vulkan to draw with" if found is None else "no device that Vulkan can draw with"
        return f"{lacks}: {_MENDS}"
    if any(not cpu or _version(info) >= _OLDEST for _, cpu, info in found):
        return ""
    name, _, info = found[0]
    return f"Vulkan on a CPU by {info} ({name}) is too old: {_MENDS}"


def _version(info: str) -> tuple[int, ...]:
    """Of Mesa, as in "Mesa 25.0.7-2 (LLVM 15.0.6)"."""
    found = re.match(r"Mesa (\d+)\.(\d+)", info)
    return tuple(map(int, found.groups())) if found else ()


def _loader() -> ctypes.CDLL | None:
    """The system's; else the one that SAPIEN brings."""
    sapien = importlib.util.find_spec("sapien")
    own = Path(sapien.origin).parent / "vulkan_library" if sapien and sapien.origin else Path()
    for name in ("libvulkan.so.1", *map(str, sorted(own.glob("libvulkan.so.*")))):
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None
