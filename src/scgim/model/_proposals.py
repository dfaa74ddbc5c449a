"""What to measure next: doses of measured drugs, and drugs of a library."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scvi import settings

from scgim._validation import check_query_dosage, check_query_embedding, quote_some
from scgim.interventions._design import curve_belief, informative_doses, reduction_of_variance
from scgim.interventions._stacking import NO_PRECISION
from scgim.model._library import LibraryMixin
from scgim.predict._sampler import some_seed

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import ArrayLike

# Conventions, for time: genes that are hardly ever targets tell nothing apart, and of many the likeliest decide.
_MIN_TARGET_PROB, _MAX_GENES = 0.01, 50
_N_CANDIDATES, _BEYOND = 21, np.log(3)  # doses to choose from, to a third and three times those measured: conventions
_MIN_SPIKE = 1e-6  # variances must not be zero


class ProposalMixin(LibraryMixin):
    """`propose_doses` and `propose_drugs` of :class:`scgim.model.GIM`."""

    def propose_doses(
        self,
        perturbations: str | Sequence[str] | None = None,
        candidates: ArrayLike | None = None,
        *,
        n: int = 1,
        n_draws: int = 200,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Which dose of which drug to measure next, by what it is expected to tell of targets and EC50.

        The expected information of a dose is the mutual information, under what is known of the drug's curves, between what would be seen
        there and whether each gene is a target and, if so, where its EC50 lies; heights and exponents are integrated out, genes are
        summed over. Each context is taken to have as many cells as those of the drug had so far.

        Parameters
        ----------
        perturbations
            One or several measured perturbations; None for all.
        candidates
            Doses to choose from; None for 21, evenly spaced in logarithms from a third of the smallest to three times the largest measured.
        n
            Number of contexts (drug and dose) to pick. They are picked one after the other, each by what it tells beyond those before, so that
            they do not say the same; a dose may come twice.
        n_draws
            Draws of what may be true, over which information is averaged.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        One row a pick, in order, indexed by (perturbation, dosage): `gain`, the expected information in nats beyond the picks before. Below them
        all other candidates, most informative first, with an empty `gain`. Of each, `of_targets`, `of_ec50` and `information`, their sum, by
        itself.

        Raises
        ------
        ValueError
            The screen has no doses, a perturbation was not measured, or candidates are not positive.

        Examples
        --------
        >>> model.propose_doses("drug_03", [0.1, 0.3, 1, 3, 10], n=2)
        >>> model.propose_doses(n=12).head(12)  # the next plate
        """
        self._check_if_trained(warn=False)
        if not self.module.knowledge.has_dosage:
            raise ValueError("The screen was set up without doses. Give them as `dosage_key`.")
        if n < 1 or n_draws < 2:
            raise ValueError(f"`n` must be at least 1 and `n_draws` at least 2, found {n} and {n_draws}.")
        names, seed = self._measured_names(perturbations), some_seed(seed)
        doses = self._candidate_doses(candidates)
        told = {name: self._informative(name, doses, n_draws, seed) for name in names}
        alone = {name: next(of_drug) for name, of_drug in told.items()}
        table = pd.concat([pd.DataFrame(values.numpy(), doses) for values in alone.values()], keys=alone)
        table = table.set_axis(["of_targets", "of_ec50"], axis=1).rename_axis(["perturbation", "dosage"])
        table.insert(0, "information", table.sum(axis=1))
        gains, left = [], {name: values.sum(1) for name, values in alone.items()}
        for _ in range(n):  # what is told of one drug leaves the others as they are
            best = max(left, key=lambda name: float(left[name].max()))
            gains.append((best, doses[int(left[best].argmax())], float(left[best].max())))
            left[best] = next(told[best]).sum(1)
        picks = pd.DataFrame(gains, columns=["perturbation", "dosage", "gain"]).set_index(["perturbation", "dosage"])
        rest = table[~table.index.isin(picks.index)].sort_values("information", ascending=False, kind="stable")
        return pd.concat([picks.join(table), rest])

    def _candidate_doses(self, candidates: ArrayLike | None) -> np.ndarray:
        """Doses to choose from, each once."""
        if candidates is None:
            low, high = self.module.knowledge.dosage_range()
            return np.exp(np.linspace(low - _BEYOND, high + _BEYOND, _N_CANDIDATES))
        try:
            doses = np.unique(check_query_dosage(candidates, np.size(candidates)))
        except ValueError as error:
            raise ValueError(str(error).replace("`dosage`", "`candidates`")) from None
        if not (doses > 0).all():
            raise ValueError("`candidates` holds doses that are not above zero. Give the doses that could be measured.")
        return doses

    def _measured_names(self, perturbations: str | Sequence[str] | None) -> list[str]:
        seen = self._drugs.is_measured & self._drugs.is_drug
        measured = [name for name, own in zip(self.perturbations, seen.tolist(), strict=True) if own]
        names = [perturbations] if isinstance(perturbations, str) else perturbations
        names = measured if names is None else list(dict.fromkeys(map(str, names)))
        unknown = [name for name in names if name not in measured]
        if unknown or not names:
            found = f"{quote_some(unknown)}, which were not measured" if unknown else "none"
            raise ValueError(
                f"`perturbations` holds {found}. Doses are proposed for measured perturbations: {quote_some(measured)}."
            )
        return names

    def _informative(self, name: str, doses: np.ndarray, n_draws: int, seed: int) -> Iterator[torch.Tensor]:
        """What each dose of a drug tells, by itself and beyond the best so far (:func:`informative_doses`)."""
        known, u = self.module.knowledge, self.perturbations.index(name)
        precision = known.response_precision.cpu()
        rows = (known.group.cpu() == u) & (precision.amax(1) > NO_PRECISION)
        drug = known.interventions().rows(torch.tensor([u]))
        log_dosage, probs = known.log_dosage.cpu()[rows].double(), drug.target_probs[0]
        beside = drug.rows(torch.zeros(len(log_dosage), dtype=torch.long)).background_at(log_dosage)
        genes = torch.argsort(-probs, stable=True)[:_MAX_GENES]
        genes = genes[probs[genes] > min(_MIN_TARGET_PROB, float(probs.max()) / 2)]
        prior, precision = known.shift_prior(), precision[rows][:, genes]
        spike, grid = prior.spike_var + _MIN_SPIKE, known.curve_grid()
        shift = (known.response.cpu()[rows] - beside)[:, genes]
        belief = curve_belief(shift, 1 / precision + spike, log_dosage, grid, prior.slab_var, probs[genes])
        noise = 1 / precision.median(0).values + spike
        return informative_doses(belief, noise, torch.as_tensor(np.log(doses)), grid, n_draws, seed)

    def propose_drugs(
        self,
        drug_embedding: Any,
        n: int = 1,
        *,
        toward: Any = None,
        dosage: float | None = None,
        metric: str = "change",
        level: float = 0.9,
        n_draws: int = 100,
        n_samples: int = 50,
        seed: int | None = 0,
    ) -> pd.DataFrame:
        """Which drugs of a library to measure next.

        Without `toward`, those from which most is learned of the library: each takes as much as can be off the variance of the total effects
        that features predict for all its drugs at the largest measured dosage, given those measured and those picked before, so that picks
        are not alike. With `toward`, those that may
        come nearest to a wanted change, by the upper bound of what they achieve: drugs that are good and drugs that are not known well.

        Parameters
        ----------
        drug_embedding
            Features of the drugs to choose from, as in :meth:`predict`.
        n
            Number of drugs to pick.
        toward, metric, n_draws, n_samples
            The wanted change and how drugs are ranked by it, as in :meth:`rank_drugs`.
        dosage
            Dosage at which the wanted change is judged; None for the median measured dosage.
        level
            The upper bound is the one of the interval of this level.
        seed
            Seed of the draws; None for new ones each time.

        Returns
        -------
        The drugs picked, in order, indexed by name. Without `toward`, `gain`: the share of the library's variance that each takes off beyond the
        ones before. With it, the table of :meth:`rank_drugs`, by its `upper` bound.

        Raises
        ------
        ValueError
            The model was set up without features, `n` is not between 1 and the number of drugs, or the wanted change cannot be used.

        Examples
        --------
        >>> model.propose_drugs(library, 8)
        >>> model.propose_drugs(library, 8, toward={"up": ["gene_01"], "down": ["gene_05"]})
        """
        self._check_if_trained(warn=False)
        embedding = self.drug_embedding
        if embedding is None:
            raise ValueError("The model was set up without drug features. Give them as `drug_embedding_key`.")
        if toward is not None:
            ranked = self.rank_drugs(
                drug_embedding,
                toward,
                dosage=dosage,
                metric=metric,
                level=level,
                n_draws=n_draws,
                n_samples=n_samples,
                seed=seed,
            )
            _check_number(n, len(ranked))
            return ranked.sort_values("upper", ascending=False, kind="stable").head(n)
        features = check_query_embedding(drug_embedding, embedding.columns.tolist(), self.perturbations)
        if not features.shape[1]:  # names of drugs of the screen
            features = embedding.loc[features.index]
        _check_number(n, len(features))
        if not self._drugs.features_tell:
            warnings.warn(
                "The features tell nothing of what drugs do, so far as is known: drugs that differ in them may act alike.",
                UserWarning,
                stacklevel=settings.warnings_stacklevel,
            )
        generator = self._drugs.generator
        sparse, x = generator.sparse, torch.as_tensor(features.to_numpy(dtype=np.float64, copy=True))
        largest = torch.full((len(x),), self.module.knowledge.dosage_range()[1], dtype=torch.float64)
        variance = generator.variance_of_totals(sparse(x), largest)
        picks, shares = reduction_of_variance(sparse.kernel, sparse.fits[0], x, variance, n, some_seed(seed))
        return pd.DataFrame({"gain": shares}, features.index[picks].rename("perturbation"))


def _check_number(n: int, n_drugs: int) -> None:
    if not 1 <= n <= n_drugs:
        raise ValueError(f"`n` must be between 1 and the number of drugs, {n_drugs}; found {n}.")
