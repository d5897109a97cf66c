"""Matrix libraries work on one thread while models are trained, and as before afterwards."""

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from hubbub.local.threads import one_thread


def threads():
    """How many threads numpy's matrix library and torch have."""
    assert np.ones(2) @ np.ones(2) == 2  # it is loaded
    return {one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"} | {torch.get_num_threads()}


@pytest.mark.parametrize("error", [None, ValueError])
def test_one_thread_while_the_block_lasts_and_as_many_as_before_afterwards(error):
    before = torch.get_num_threads()
    try:
        with threadpool_limits(2, user_api="blas"):
            torch.set_num_threads(2)
            try:
                with one_thread():
                    assert threads() == {1}
                    if error:
                        raise error
            except ValueError:
                pass
            assert threads() == {2}
    finally:
        torch.set_num_threads(before)
