"""One thread for each matrix library: the bits of a sum must not depend on how many cores there are.

Nor do processes side by side, one core each, gain anything by threads that wait for each other.
"""

import sys
from collections.abc import Generator
from contextlib import contextmanager

from threadpoolctl import threadpool_limits  # pyright: ignore[reportMissingTypeStubs, reportUnknownVariableType]  # has none


@contextmanager
def one_thread() -> Generator[None]:
    """Let numpy's matrix library, and torch if it is loaded, work on one thread."""
    torch = sys.modules.get("torch")  # not there with the ndarray hook
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(1, user_api="blas"):
        try:
            if torch:
                torch.set_num_threads(1)
            yield
        finally:
            if torch:
                torch.set_num_threads(before)
