"""Off-screen OpenGL for MuJoCo without a display: EGL, or OSMesa where EGL has no device.

As a program it says what is missing on this machine, with the standard library alone.
"""

from __future__ import annotations

import atexit
import ctypes
import ctypes.util
import functools
import os
import sys
from typing import Any

PACKAGES = "libegl1 libgl1-mesa-dri libopengl0"  # of Debian
_LARGEST = 1024  # pixels a side that OSMesa has memory for
_DEVICE_PLATFORM = 0x313F  # EGL_PLATFORM_DEVICE_EXT


@functools.cache
def backend() -> str:
    """ "egl" or "osmesa", MUJOCO_GL where it is set; "" where neither can be loaded."""
    works = {"egl": _egl, "osmesa": _osmesa}
    wanted = os.environ.get("MUJOCO_GL", "").lower()
    return next((name for name in ([wanted] if wanted else works) if works.get(name, bool)()), "")


def missing() -> str:
    """What hinders pictures and what mends it, in one line; "" where nothing does."""
    if backend():
        return ""
    wanted = os.environ.get("MUJOCO_GL")
    if wanted and wanted.lower() not in ("egl", "osmesa"):
        return f"MUJOCO_GL={wanted} draws on a display: unset it, or set it to egl or osmesa"
    named = f"MUJOCO_GL={wanted} cannot be" if wanted else "neither EGL nor OSMesa can be"
    packages = "libosmesa6" if (wanted or "").lower() == "osmesa" else PACKAGES
    return f"no OpenGL to draw with ({named} loaded): apt-get install {packages}"


def choose() -> None:
    """Sets what MuJoCo and PyOpenGL look at when they are imported; RuntimeError where there is
    nothing to choose."""
    if why := missing():
        raise RuntimeError(why)
    os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = backend()
    # Mesa on a CPU: threads cost more than they give where workers are many.
    os.environ.setdefault("LP_NUM_THREADS", "1")


@functools.cache
def context() -> Any:
    """The OpenGL context of this process, made current: all pictures are drawn in one. RuntimeError
    where TensorFlow is loaded: Mesa would end the process, as both bring an LLVM."""
    if "tensorflow" in sys.modules:
        raise RuntimeError(
            "OpenGL cannot draw in a process that has loaded TensorFlow: use another one, such as "
            'the workers of `lapa evaluate --benchmark`, or data.decode="threads"'
        )
    choose()
    if backend() == "egl":
        from mujoco.egl import GLContext
    else:
        from mujoco.osmesa import GLContext
    found = GLContext(_LARGEST, _LARGEST)
    found.make_current()
    atexit.register(context.cache_clear)  # it is freed by its end, once
    return found


def _osmesa() -> bool:
    return ctypes.util.find_library("OSMesa") is not None


def _egl() -> bool:
    """Whether a device of EGL can be opened, as MuJoCo will."""
    try:
        egl = ctypes.CDLL("libEGL.so.1")
        ctypes.CDLL("libOpenGL.so.0")
    except OSError:
        return False
    egl.eglGetProcAddress.restype = ctypes.c_void_p
    egl.eglGetProcAddress.argtypes = [ctypes.c_char_p]
    query, display = (
        egl.eglGetProcAddress(name) for name in (b"eglQueryDevicesEXT", b"eglGetPlatformDisplayEXT")
    )
    if not query or not display:
        return False
    pointer, number = ctypes.c_void_p, ctypes.c_int
    devices, count = (pointer * 32)(), number()
    query = ctypes.CFUNCTYPE(ctypes.c_uint, number, pointer, ctypes.POINTER(number))(query)
    if not query(32, ctypes.cast(devices, pointer), ctypes.byref(count)):
        return False
    display = ctypes.CFUNCTYPE(pointer, ctypes.c_uint, pointer, pointer)(display)
    egl.eglInitialize.argtypes = [pointer, pointer, pointer]
    found = (display(_DEVICE_PLATFORM, device, None) for device in devices[: count.value])
    return any(one and egl.eglInitialize(one, None, None) for one in found)


if __name__ == "__main__":
    sys.exit(missing() or None)
