"""Checks of user input: every message names the key, says what was found and what to do."""

from __future__ import annotations

from scgim._validation._combinations import (
    Members,
    check_no_combination,
    combination_name,
    in_combinations,
    inseparable_drugs,
    joined_labels,
    separate_combinations,
    warn_of_inseparable,
)
from scgim._validation._design import (
    check_covariates,
    check_dosage,
    check_interval,
    check_levels,
    check_perturbations,
    check_query_dosage,
    check_regulators,
    check_size_factors,
    match_doses,
    merge_doses,
    odd_labels,
)
from scgim._validation._embedding import check_query_embedding, resolve_embedding
from scgim._validation._matrix import (
    check_annotated,
    check_continuous,
    check_counts,
    check_gene_names,
    check_matrix_type,
    check_nonempty,
    check_var_names,
    iterate_blocks,
    largest_count,
    matrix_name,
)
from scgim._validation._messages import (
    check_column,
    check_genes,
    check_key,
    check_known_genes,
    numeric_values,
    quote_some,
)
from scgim._validation._priors import prior_log_odds
from scgim._validation._suggestions import close_names

__all__ = [
    "Members",
    "check_annotated",
    "check_column",
    "check_continuous",
    "check_counts",
    "check_covariates",
    "check_dosage",
    "check_interval",
    "check_gene_names",
    "check_genes",
    "check_key",
    "check_known_genes",
    "check_levels",
    "check_matrix_type",
    "check_no_combination",
    "check_nonempty",
    "check_perturbations",
    "check_query_dosage",
    "check_query_embedding",
    "check_regulators",
    "check_size_factors",
    "warn_of_inseparable",
    "check_var_names",
    "close_names",
    "combination_name",
    "in_combinations",
    "inseparable_drugs",
    "iterate_blocks",
    "joined_labels",
    "largest_count",
    "match_doses",
    "matrix_name",
    "merge_doses",
    "numeric_values",
    "odd_labels",
    "prior_log_odds",
    "quote_some",
    "resolve_embedding",
    "separate_combinations",
]
