"""How many threads torch uses: on small tensors, more than one cost time instead of saving it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

MIN_ELEMENTS = 200_000  # values in a minibatch from which several threads pay, on machines of a few cores


@contextmanager
def threads_for(n_elements: int) -> Iterator[None]:
    """Use one thread for work on tensors of fewer than `MIN_ELEMENTS` values; restore the number afterwards."""
    before = torch.get_num_threads()
    if n_elements < MIN_ELEMENTS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
