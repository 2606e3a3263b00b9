"""What is freed serves what is asked for next, in every thread."""

import subprocess
import sys

import pytest

_FAULTS = """
import ctypes, resource, sys, threading
from lapa_jax.machine import allocator

kept = sys.argv[1] == "kept" and allocator.keep_freed()
if sys.argv[1] == "kept" and not kept:
    sys.exit(3)

libc = ctypes.CDLL(None)
libc.malloc.restype = libc.memset.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]

def pages():
    libc.free(libc.memset(libc.malloc(ctypes.c_size_t(80_000_000)), 1, 80_000_000))

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

for _ in range(2):
    pages()
    thread = threading.Thread(target=pages)
    before = faults()
    thread.start()
    thread.join()
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc is asked for on Linux")
def test_freed_memory_is_used_again():
    def faults(which):
        command = [sys.executable, "-c", _FAULTS, which]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert faults("given_back") > 15_000  # pages of 4 KiB in 80 MB
    assert faults("kept") < 1000
