"""scikit-learn on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, BLAS and OpenMP use one thread: the matrices of probes are too small to share, on a
    busy machine threads wait for each other many times longer than they work, and sums that are
    shared among threads have another last bit each time. Also a decorator: `@one_thread()`."""
    import sklearn.utils  # noqa: F401 - a thread pool must be loaded to be limited
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        yield
