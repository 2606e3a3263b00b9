"""How the C library hands out memory."""

import ctypes
import mmap
import os

# Of glibc's malloc.h; what they do is in mallopt(3).
_ARENA_MAX, _MMAP_MAX, _TRIM_THRESHOLD = -8, -4, -1
_HUGE = 2 << 20  # bytes of a huge page


def keep_freed() -> bool:
    """Has this process keep what it frees, up to its end, for what it asks for next, in huge pages
    where the system has them; False where the C library is not glibc.

    XLA takes the memory of a program anew at every call on a CPU. By default such blocks go back to
    the system, which gives them out again page by page, each filled with zeros: two fifths of a
    step of a small model. One heap for all threads that never shrinks spares that. Threads that
    have a heap of their own keep it, so this comes first.

    Kept pages are not in the cache, as those just filled with zeros are, and of small ones the
    addresses are not either: without huge pages the wall time of a step on idle cores grows.
    """
    libc = ctypes.CDLL(None)
    if getattr(libc, "mallopt", None) is None:
        return False
    kept = all(
        [libc.mallopt(*one) for one in ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))]
    )
    return kept and _ask_for_huge_pages(libc)


def _ask_for_huge_pages(libc: ctypes.CDLL) -> bool:
    """The heap grows to half of the machine's memory, none of which is used yet; what will be comes
    in huge pages. Where that is refused it stays as it is."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    block = libc.malloc(size)
    if block:
        begin = -(-block // _HUGE) * _HUGE
        libc.madvise(begin, (block + size - begin) // _HUGE * _HUGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
    return True
