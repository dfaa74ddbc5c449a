"""Names under which scGIM registers its inputs and stores its results: the only place where they are spelled."""

from __future__ import annotations

from typing import NamedTuple


class _RegistryKeys(NamedTuple):
    """Names of scGIM's own fields in the scvi-tools data registry."""

    PERTURBATION: str = "perturbation"
    DOSAGE: str = "dosage"
    CONTEXT: str = "gim_context"


REGISTRY = _RegistryKeys()

MANY_GENES = 1000
"""From so many genes on, all of which may regulate, the search for the network takes long: convention."""

_DIVISION_SLASH = "\N{DIVISION SLASH}"


def stored_name(name: str) -> str:
    """A name as a key of a file: "/", which separates groups there, as the division slash, which reads the same."""
    return str(name).replace("/", _DIVISION_SLASH)


def read_name(name: str) -> str:
    """The name that :func:`stored_name` was given."""
    return str(name).replace(_DIVISION_SLASH, "/")


class Key:
    """Slots of an annotated AnnData; `key` is the `key_added` given to :meth:`scgim.model.GIM.annotate`."""

    DEFAULT = "gim"
    DOSAGE_UNIT = "dosage_unit"  # entry of `uns` in which users name the unit of their doses
    LOADINGS = "_loadings"  # of components of drug features, and what bits of a fingerprint stand for:
    SUBSTRUCTURES = "_substructures"  # entries of `uns` named like the features with this at the end

    class varp:
        """Gene by gene matrices."""

        @staticmethod
        def edge_probs(key: str) -> str:
            return f"{key}_edge_probs"

        @staticmethod
        def edge_weights(key: str) -> str:
            return f"{key}_edge_weights"

    class varm:
        """Gene by perturbation data frames."""

        @staticmethod
        def targets(key: str) -> str:
            return f"{key}_targets"

        @staticmethod
        def shifts(key: str) -> str:
            return f"{key}_shifts"

        @staticmethod
        def shift_sds(key: str) -> str:
            return f"{key}_shift_sds"

        @staticmethod
        def total_effects(key: str) -> str:
            return f"{key}_total_effects"

        @staticmethod
        def total_effect_errors(key: str) -> str:
            return f"{key}_total_effect_errors"

        @staticmethod
        def total_effect_sds(key: str) -> str:
            return f"{key}_total_effect_sds"

        @staticmethod
        def context_effects(key: str) -> str:
            return f"{key}_context_effects"

        @staticmethod
        def emax(key: str) -> str:
            return f"{key}_emax"

        @staticmethod
        def ec50(key: str) -> str:
            return f"{key}_ec50"

        @staticmethod
        def hill(key: str) -> str:
            return f"{key}_hill"

    class obsm:
        """Cell by something data frames."""

        @staticmethod
        def states(key: str) -> str:
            return f"{key}_states"

    class obs:
        """Columns of cells."""

        @staticmethod
        def size_factor(key: str) -> str:
            return f"{key}_size_factor"

    class var:
        """Columns of genes."""

        @staticmethod
        def controls_agree(key: str) -> str:
            return f"{key}_controls_agree"

        @staticmethod
        def standard_deviation(key: str) -> str:
            return f"{key}_sd"

    class uns:
        """Entries of the dictionary `adata.uns[key]`."""

        CONTEXTS = "contexts"
        PARAMS = "params"
        PERTURBATIONS = "perturbations"
        HISTORY = "history"
        FEATURE_IMPORTANCE = "feature_importance"
        CONTROLS = "controls"
