"""Genes that may regulate others, by name."""

from __future__ import annotations

import warnings
from importlib.resources import files
from typing import TYPE_CHECKING

import pandas as pd

from scgim._validation import quote_some

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anndata import AnnData

ORGANISMS = ("human", "mouse")
_LISTS = ("transcription_factors.txt", "signalling.txt")
_FEW = 0.02  # of the genes; among all genes of a genome about one in twenty is on the lists


def mark_regulators(adata: AnnData, regulators: str | Iterable[str] = "human", key_added: str = "regulator") -> None:
    """Mark the genes that may regulate others: transcription factors and signalling regulators, or those of a list.

    The lists that come with scGIM hold the 795 transcription factors of TRRUST version 2 :cite:p:`han2018trrust` (CC BY-SA 4.0)
    and the kinases, and what else is inhibited along with them, of the Drug Repurposing Hub :cite:p:`corsello2017` (CC BY 4.0).
    They are not complete; a list made for the cells at hand is better.

    Parameters
    ----------
    adata
        Cells x genes; names of genes are symbols.
    regulators
        `"human"` or `"mouse"` for the lists that come with scGIM, or names of genes. Mouse symbols are taken for the human ones
        written with one capital (Stat1 for STAT1), which holds for most orthologues and not for all.
    key_added
        Column of `var` to write.

    Returns
    -------
    Nothing; adds the boolean column `var[key_added]`, for `regulator_key` of :meth:`scgim.model.GIM.setup_anndata`.

    Raises
    ------
    ValueError
        `regulators` is neither an organism nor a list, or names no gene of the screen.

    Warns
    -----
    UserWarning
        Few genes are on the lists that come with scGIM, as where the organism is another or names are not symbols.

    Examples
    --------
    >>> import scgim
    >>> adata = scgim.data.simulate_screen(n_unseen_drugs=0)
    >>> scgim.pp.mark_regulators(adata, adata.var_names[:5])
    >>> scgim.model.GIM.setup_anndata(adata, regulator_key="regulator")
    """
    shipped = isinstance(regulators, str)
    if shipped and regulators not in ORGANISMS:
        raise ValueError(f"`regulators` must be one of {list(ORGANISMS)} or a list of genes, found {regulators!r}.")
    names = known_regulators(str(regulators)) if shipped else [str(name) for name in regulators]
    marked = adata.var_names.astype(str).isin(names)
    if not marked.any():
        raise ValueError(
            f"None of the {adata.n_vars} genes is among the {len(names)} regulators. `adata.var_names` are such as "
            f"{quote_some(adata.var_names, 3)}, regulators such as {quote_some(names, 3)}. Give symbols, or a list of names."
        )
    if shipped and marked.mean() < _FEW:
        warnings.warn(
            f"Only {int(marked.sum())} of {adata.n_vars} genes are among the regulators of {regulators!r}. If the organism is "
            "another or `adata.var_names` are no symbols, give a list of names.",
            UserWarning,
            stacklevel=2,
        )
    adata.var[key_added] = pd.Series(marked, index=adata.var.index, dtype=bool)


def known_regulators(organism: str) -> list[str]:
    """Symbols of the lists that come with scGIM."""
    lines: list[str] = []
    for name in _LISTS:
        lines += (files("scgim.pp") / "_regulators" / name).read_text(encoding="utf-8").splitlines()
    human = sorted({line for line in lines if line and not line.startswith("#")})
    return human if organism == "human" else [name.capitalize() for name in human]
