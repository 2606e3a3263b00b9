"""How the C library hands out memory."""

import ctypes

# Of glibc's malloc.h; what they do is in mallopt(3).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1


def keep_freed() -> bool:
    """Has this process keep what it frees, up to its end, for what it asks for next; False where
    the C library is not glibc.

    XLA takes the memory of a program anew at every call on a CPU. By default such blocks go back to
    the system, which gives them out again page by page, each filled with zeros: two fifths of a
    step of a small model. One heap for all threads that never shrinks spares that. Threads that
    have a heap of their own keep it, so this comes first.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_ARENA_MAX, 1), mallopt(_MMAP_MAX, 0), mallopt(_TRIM_THRESHOLD, -1)])
