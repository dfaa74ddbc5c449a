"""Choice of drugs and cells, and a cache for what was made of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import anndata
import numpy as np

from scgim._validation import check_key, quote_some

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData

logger = logging.getLogger(__name__)

_FORMAT = 1  # raise it when readers change what they return, so that older files in the cache are not used


def match_names(wanted: Sequence[str] | None, available: Iterable[str], *, argument: str) -> list[str]:
    """Names to keep: exact ones, or those that a wanted name begins ("trametinib" for "Trametinib (GSK1120212)").

    Raises
    ------
    KeyError
        There is no such name.
    ValueError
        A wanted name begins several.
    """
    names = sorted(available)
    if wanted is None:
        return names
    found = []
    for name in [wanted] if isinstance(wanted, str) else wanted:
        matches = [name] if name in names else [other for other in names if other.lower().startswith(name.lower())]
        if len(matches) > 1:
            raise ValueError(f"`{argument}={name!r}` fits several: {quote_some(matches)}. Write it out.")
        if not matches:
            check_key(name, names, where=f"the {argument} of this data set", argument=argument)
        found.extend(matches)
    return found


def subsample(obs: pd.DataFrame, n_cells: int | None, groups: Sequence[str], seed: int) -> pd.DataFrame:
    """At most `n_cells` rows at random, with the proportions of the combinations of `groups`, in the order given."""
    if n_cells is None or n_cells >= len(obs):
        return obs
    if n_cells < 1:
        raise ValueError(f"`n_cells={n_cells}` leaves no cells. Give a positive number or None.")
    shuffled = obs.sample(frac=1, random_state=np.random.default_rng(seed))
    grouped = shuffled.groupby(list(groups), observed=True, dropna=False)
    # Position within the group, as a fraction: the smallest ones over all groups are a stratified sample.
    position = (grouped.cumcount() + 0.5) / grouped[groups[0]].transform("size")
    chosen = set(position.nsmallest(n_cells).index)
    return obs[[name in chosen for name in obs.index]]


def _plain(value: Any) -> Any:
    """Numpy scalars and arrays, pandas indices and the like as what JSON can hold."""
    return value.tolist() if hasattr(value, "tolist") else list(value)


def cached(name: str, arguments: dict[str, Any], folder: Path, make: Callable[[], AnnData]) -> AnnData:
    """Result of `make()`, read from `folder` when it was made with the same arguments before."""
    key = hashlib.sha256(json.dumps([_FORMAT, arguments], sort_keys=True, default=_plain).encode()).hexdigest()[:12]
    path = folder / f"{name}_{key}.h5ad"
    if path.is_file():
        logger.info("Reading %s.", path)
        return anndata.read_h5ad(path)
    adata = make()
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        adata.write_h5ad(unfinished, compression="lzf")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    return adata
