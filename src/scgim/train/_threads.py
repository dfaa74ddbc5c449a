"""How many threads torch uses: as many as the user asked for, and one on small tensors, where more cost time instead of saving it."""

from __future__ import annotations

import os
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

# Values in a minibatch from which several threads pay: measured on machines of few cores.
MIN_ELEMENTS = 200_000
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def asked_threads() -> int:
    """Threads that the environment allows, or torch has.

    Other libraries change the pool that torch shares with them: numba, which scanpy uses, sets it to all cores, whatever the
    environment says.
    """
    asked = [int(value) for name in _VARIABLES if (value := os.environ.get(name, "")).isdigit() and int(value) > 0]
    return min([torch.get_num_threads(), *asked])


@contextmanager
def threads_for(n_elements: int | None = None) -> Iterator[None]:
    """Use the threads asked for, or one for work on tensors of fewer than `MIN_ELEMENTS` values; restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if n_elements is not None and n_elements < MIN_ELEMENTS else asked_threads())
    try:
        yield
    finally:
        torch.set_num_threads(before)
