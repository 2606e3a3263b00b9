"""How the C library hands out memory."""

import os
import sys

_TUNABLE = "glibc.malloc.hugetlb"


def take_huge_pages() -> None:
    """Starts this process anew with glibc told to ask for huge pages, which has to be in the
    environment from the start; nothing where that is said already, either way, or there is no
    glibc. Processes that it starts inherit it.

    XLA takes the memory of a program anew at every call on a CPU, and it comes from the system page
    by page, each filled with zeros: a third of a step of a small model, unless pages are huge.
    """
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if _TUNABLE in tunables or not _is_glibc() or not sys.executable:
        return
    os.environ["GLIBC_TUNABLES"] = ":".join(filter(None, (tunables, f"{_TUNABLE}=1")))
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _is_glibc() -> bool:
    return "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()) and sys.platform == "linux"
