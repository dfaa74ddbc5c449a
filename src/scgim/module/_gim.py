"""The probabilistic model: priors, structural causal model and interventions, as Pyro `model` and `guide`."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from scvi.module.base import PyroBaseModuleClass
from torch import Tensor, nn
from torch.func import functional_call

from scgim._priors import MIN_SPIKE_VAR
from scgim.interventions._levels import of_new_drugs
from scgim.interventions._stacking import DrugGenerator, Responses
from scgim.module._depth import DepthOfCells
from scgim.module._knowledge import Knowledge
from scgim.module._spike_and_slab import SpikeAndSlab
from scgim.module._states import StatesOfCells
from scgim.nn._likelihood import CommonNoise, observation, parent_features, random_numbers, sample_observation
from scgim.nn._mechanism import linear_part, make_mechanism, through_network
from scgim.structure._graph import topological_layers

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray
    from pyro.distributions.torch_distribution import TorchDistribution

    from scgim.interventions._curves import CurveGrid
    from scgim.interventions._interventions import Interventions

# Standard normal cells that slopes are averaged over; those of linear mechanisms are the same everywhere.
_N_SLOPES = 512
# Prior of the log inverse dispersion: from Poisson to an overdispersion of 7, within two standard deviations. The log
# precision of standardised values has the same. Convention.
_LOG_SCALE, _LOG_SCALE_SD = 2.0, 2.0
_MIN_MEAN = 1e-6  # of a gene that is set to nothing, so that it has a logarithm


class GIMModule(PyroBaseModuleClass):
    r"""Generative intervention model of counts (GIM paper, section 3).

    .. math::
        x_{nj} \mid x_{n,pa(j)} \sim \mathrm{NB}(s_n \exp(b_j + c_n^T \beta_j + f_j(h_{n,pa(j)}) + \psi_{k(n)j}), r_j)

    with parent features h (:func:`~scgim.nn._likelihood.parent_features`, standardised on controls) and the direct
    effects psi of each context. Torch owns every parameter; Pyro's parameter store stays empty.

    Parameters
    ----------
    n_genes
        Number of genes d.
    group
        Perturbation of each context as an integer, -1 for the control, shape (K,).
    log_dosage
        Log dosage of each context (-inf for the control), shape (K,); None for a screen without doses.
    n_covariates
        Columns of the covariate design Q.
    likelihood
        "nb", "poisson" or "normal".
    mechanism
        "linear" or "mlp".
    intervention
        "shift" or "hard".
    n_hidden
        Hidden units per gene of an MLP mechanism.
    measurement
        "direct": parents act by their counts. "latent": by hidden expression, of which counts are a Poisson sample.
    level
        Level of the effect modifier of each context, shape (K,); None or empty if effects have none.
    regulators
        Genes that may be parents, boolean (d,); None for all.
    members
        Contexts of combinations of drugs, each with the context of one of its members, shape (P, 2); None without combinations.
    """

    def __init__(
        self,
        n_genes: int,
        group: NDArray,
        log_dosage: NDArray | None,
        n_covariates: int,
        likelihood: str,
        mechanism: str,
        intervention: str,
        n_hidden: int,
        measurement: str = "direct",
        level: NDArray | None = None,
        regulators: NDArray | None = None,
        members: NDArray | None = None,
    ):
        super().__init__()
        self.intervention, self.n_obs = intervention, None
        self._likelihood = likelihood
        # in the state, as it may be chosen in training
        self.register_buffer("is_latent", torch.tensor(measurement == "latent"))
        self.take_measurement(measurement)
        n_contexts, n_groups = len(group), int(max(group)) + 1
        self.mechanism = make_mechanism(mechanism, n_genes, n_hidden, regulators)
        self.intercept = nn.Parameter(torch.zeros(n_genes))
        self.covariate_effect = nn.Parameter(torch.zeros(n_covariates, n_genes))
        self.log_scale = nn.Parameter(torch.full((n_genes,), _LOG_SCALE))
        self.shift = nn.Parameter(torch.zeros(n_contexts, n_genes))
        self.target_logits = nn.Parameter(torch.zeros(n_groups, n_genes), requires_grad=intervention == "hard")
        self.register_buffer("centre", torch.zeros(n_genes))
        self.register_buffer("spread", torch.ones(n_genes))
        self.register_buffer("intercept_loc", torch.zeros(n_genes))
        # what drawn control cells need to have the means of the observed ones (:func:`scgim.fit._baselines.match_baselines`)
        self.register_buffer("baseline_offset", torch.zeros(n_genes))
        codes = torch.as_tensor(np.asarray(group), dtype=torch.long)
        doses = None if log_dosage is None else torch.as_tensor(np.asarray(log_dosage)).double()
        levels = None if level is None or not len(level) else torch.as_tensor(np.asarray(level), dtype=torch.long)
        together = None if members is None else torch.as_tensor(np.asarray(members), dtype=torch.long)
        self.knowledge = Knowledge(codes, doses, n_genes, levels, together)
        self.states = StatesOfCells(n_genes, n_contexts, n_covariates)
        self.depth = DepthOfCells(n_genes, n_contexts, n_covariates)

    def take_measurement(self, measurement: str) -> None:
        """Take `"direct"` or `"latent"`; counts are a Poisson sample of hidden expression."""
        self.measurement = measurement
        self.likelihood = "poisson" if measurement == "latent" else self._likelihood
        self.is_latent.fill_(measurement == "latent")

    @property
    def device(self) -> torch.device:
        return self.intercept.device

    @property
    def group(self) -> Tensor:
        """Perturbation of each context, -1 for the control, (K,)."""
        return self.knowledge.group

    @property
    def treated(self) -> Tensor:
        """Contexts that are not the control, boolean (K,)."""
        return self.knowledge.treated

    @property
    def adjacency(self) -> Tensor:
        """The graph, 1 where gene i acts on gene j, (d, d): the only place where it is kept."""
        return linear_part(self.mechanism).adjacency

    def on_load(self, model: Any, **kwargs: Any) -> None:
        """Nothing: there are no parameters in Pyro's store, which scvi-tools would make by a step of training."""

    def load_state_dict(self, state_dict: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """As in torch; the graph first, since the shapes of parameters depend on it."""
        state_dict = {"is_latent": self.is_latent, **state_dict}  # of a model from before it was chosen
        self.take_measurement("latent" if state_dict["is_latent"] else "direct")
        graph = next((value for name, value in state_dict.items() if name.endswith("adjacency")), None)
        if graph is not None:
            self.mechanism.set_graph(torch.as_tensor(graph).cpu().numpy().astype(bool))
        return super().load_state_dict(state_dict, *args, **kwargs)

    @torch.no_grad()
    def mean_slopes(self) -> Tensor:
        """Change of each gene's predictor for one standard deviation of a parent, on average, shape (d, d); on the CPU."""
        h = torch.randn(_N_SLOPES, len(self.centre), generator=torch.Generator().manual_seed(0))
        return self.mechanism.slopes(h.to(self.device)).double().cpu()

    @torch.no_grad()
    def carry(self) -> Tensor:
        """What effects do once they have gone through the network, to first order, shape (d, d); on the CPU.

        `effects @ carry` are changes of the parent features in standard deviations.
        """
        slopes = self.mean_slopes()
        own = torch.ones(len(slopes), dtype=torch.float64)
        if self.likelihood != "normal":
            mean = (
                self.intercept_loc.double().exp().cpu()
            )  # a change of the log mean moves log1p by less where counts are small
            own = (1.0 if self.measurement == "latent" else mean / (1 + mean)) / self.spread.double().cpu()
        return own[:, None] * through_network(slopes * own)

    def responses(self) -> Responses:
        """What was measured in the treated contexts that had training cells; on the CPU."""
        return self.knowledge.responses(self.carry())

    def measured(self, features: Tensor, codes: Tensor) -> tuple[Tensor, Interventions, CurveGrid, tuple[float, float]]:
        """Features and interventions of the perturbations that were measured (`codes`), curves to choose from, and range of log dosages.

        `features` (U, p) are those of all perturbations.
        """
        known = self.knowledge
        return features[codes], known.interventions().rows(codes), known.curve_grid(), known.dosage_range()

    def drug_generator(self, features: Tensor, codes: Tensor) -> DrugGenerator:
        """Generator fitted to what is known of the measured perturbations; arguments as for :meth:`measured`."""
        return DrugGenerator(*self.measured(features, codes), self.responses().of(codes))

    def in_levels(self, found: Interventions, activity: Tensor | None, deviation: Tensor | None) -> Interventions:
        """Interventions of drugs that are known by their features, in each level of the effect modifier if there is one.

        `activity` (Q, L) is the share of their effects that they have in each, and `deviation` (Q, L, m, d) what they do beside.
        """
        if not self.knowledge.n_levels:
            return found
        transfer = self.knowledge.transfer(counts=self.likelihood != "normal")
        return replace(
            found, levels=of_new_drugs(found, activity, deviation, transfer, self.knowledge.measured_levels())
        )

    @staticmethod
    def _get_fn_args_from_batch(tensors: dict[str, Tensor]) -> tuple[tuple, dict]:
        return tuple(tensors[name] for name in ("x", "context", "covariates", "log_size")), {}

    def standardised(self, x: Tensor) -> Tensor:
        """Values on the scale of the likelihood: counts as they are, continuous values standardised on controls."""
        return (x - self.centre) / self.spread if self.likelihood == "normal" else x

    def parent_features(self, x: Tensor, log_size: Tensor) -> Tensor:
        """Parent features h, standardised on controls, shape (B, d)."""
        return (parent_features(x, log_size, self.likelihood) - self.centre) / self.spread

    def predictors(
        self, x: Tensor, context: Tensor, covariates: Tensor, log_size: Tensor, values: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Predictor of each gene as its mechanism sets it and, for hard interventions, with the mechanism cut; (B, d).

        Shifts are part of the first; hard interventions replace the mechanism and enter the second alone.
        """
        values = values or {}
        get = lambda name: values.get(name, getattr(self, name, None))
        of_mechanism = {n: values.get(f"mechanism.{n}", p) for n, p in self.mechanism.named_parameters()}
        base = get("intercept") + covariates @ get("covariate_effect")
        h = self.parent_features(x, log_size)
        if self.states.n:
            base = base + self.states.offsets(h, context, covariates)
        shifted = base + (get("shift") * self.treated[:, None])[context]
        whole = base if self.intervention == "hard" else shifted
        return whole + functional_call(self.mechanism, of_mechanism, (h,)), shifted

    def _priors(self) -> dict[str, TorchDistribution]:
        """Prior of each parameter, by name."""
        zero = torch.zeros((), device=self.device)
        _, slab, spike = self.knowledge.prior.float()
        priors: dict[str, TorchDistribution] = {
            "intercept": dist.Normal(self.intercept_loc, 1.0).to_event(1),
            "log_scale": dist.Normal(zero + _LOG_SCALE, _LOG_SCALE_SD).expand(self.log_scale.shape).to_event(1),
            "shift": SpikeAndSlab(
                self.group,
                self.shift.shape[1],
                self.knowledge.prior_target_probs(),
                (spike + MIN_SPIKE_VAR).sqrt(),
                (spike + MIN_SPIKE_VAR + slab).sqrt(),
            ),
        }
        if self.covariate_effect.numel():
            priors["covariate_effect"] = dist.Normal(zero, 1.0).expand(self.covariate_effect.shape).to_event(2)
        used = dict(zip(dict(self.mechanism.named_parameters()), self.mechanism.prior_masks(), strict=True))
        for name, parameter in self.mechanism.named_parameters():
            normal = dist.Normal(zero, 1.0).expand(parameter.shape)
            priors[f"mechanism.{name}"] = normal.mask(used[name]).to_event(parameter.dim())
        return priors

    def model(self, x: Tensor, context: Tensor, covariates: Tensor, log_size: Tensor) -> None:
        """Joint density of parameters and cells."""
        values = {name: pyro.sample(name, prior) for name, prior in self._priors().items()}
        if self.intervention == "hard":
            pyro.factor("targets", -self._target_divergence())
        with_mechanism, without = self.predictors(x, context, covariates, log_size, values)
        x = self.standardised(x)
        with pyro.plate("cells", size=self.n_obs or len(x), subsample=x):
            likelihood = observation(self.likelihood, with_mechanism, log_size, values["log_scale"])
            if self.intervention == "shift":
                pyro.sample("x", likelihood.to_event(1), obs=x)
                return
            # expectation over the targets under a factorised posterior: a lower bound, since mechanisms are shared by all cells
            cut = observation(self.likelihood, without, log_size, values["log_scale"]).log_prob(x)
            probs = self.cell_target_probs(context)
            pyro.factor("x", (probs * cut + (1 - probs) * likelihood.log_prob(x)).sum(-1))

    def guide(self, x: Tensor, context: Tensor, covariates: Tensor, log_size: Tensor) -> None:
        """Point estimate of every parameter."""
        for name, value in self.named_parameters():
            if name == "target_logits" or not value.numel():
                continue  # the indicators are summed out, or there are no covariates
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))

    def cell_target_probs(self, context: Tensor) -> Tensor:
        """Posterior probability that each gene of each cell is a target, shape (B, d); 0 in controls."""
        group = self.group[context]
        return torch.sigmoid(self.target_logits[group]) * (group >= 0)[:, None]

    def _target_divergence(self) -> Tensor:
        """Kullback-Leibler divergence of the target indicators from their prior."""
        probs = torch.distributions.Bernoulli(logits=self.target_logits)
        prior = torch.distributions.Bernoulli(probs=self.knowledge.prior_target_probs())
        return torch.distributions.kl_divergence(probs, prior).sum()

    def log_likelihood(self, x: Tensor, covariates: Tensor, log_size: Tensor, shift: Tensor, targets: Tensor) -> Tensor:
        """Log-likelihood of cells under given direct effects, (B, d); `targets` (B, d) cut mechanisms if hard.

        Hidden states are taken for noise of each gene.
        """
        base = self.intercept + covariates @ self.covariate_effect + shift
        parents = self.mechanism(self.parent_features(x, log_size))
        if self.intervention == "hard":
            parents = parents * ~targets
        every = torch.arange(len(self.centre), device=self.device)
        scale = self.states.scale_beside(self.likelihood, self.log_scale, every, self.states.variance)
        return observation(self.likelihood, base + parents, log_size, scale).log_prob(self.standardised(x))

    @torch.no_grad()
    def sample_cells(
        self,
        shift: Tensor,
        targets: Tensor,
        covariates: Tensor,
        log_size: Tensor,
        rng: torch.Generator | CommonNoise,
        fixed: dict[int, float | Tensor] | None = None,
        *,
        layers: list[list[int]] | None = None,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Draw cells gene by gene in topological order, so that effects are carried down the network.

        The parents of a gene act on it no further than they did in the training cells, of counts without the outer half percent: beyond,
        nothing is known of the mechanism, and errors would grow along the network without limit.

        Parameters
        ----------
        shift
            Direct effects, shape (B, d).
        targets
            Genes acted on directly, boolean (B, d); hard interventions cut their mechanisms.
        covariates, log_size
            Covariates (B, Q) and log size factors (B, 1).
        rng
            Source of randomness, on the module's device; common noise for the same random numbers whatever the effects.
        fixed
            Values that genes are set to, whatever their parents, by index; one, or one a cell (B,).
        layers
            :meth:`layers`, where they are at hand.
        drawn
            Genes whose values are needed, boolean (d,), all that have children among them; None for all. Others need not be drawn: their
            values mean nothing, their means do.

        Returns
        -------
        Values and their means given the parents, both (B, d).
        """
        fixed = fixed or {}
        x, mean, h = (torch.zeros_like(shift) for _ in range(3))
        base = self.intercept + self.baseline_offset + covariates @ self.covariate_effect + shift
        if self.states.n:
            base = base + random_numbers(rng, lambda own: self.states.draw(len(shift), own))
        for layer in self.layers() if layers is None else layers:
            genes = torch.tensor(layer, device=shift.device)
            value, m, hidden = self.draw_genes(genes, base[:, genes], h, targets, log_size, rng, drawn)
            for column, gene in enumerate(layer):
                if gene in fixed:
                    value[:, column] = m[:, column] = fixed[gene]
            x[:, genes], mean[:, genes] = value, m
            features = parent_features(value, log_size, self.likelihood)
            if self.measurement == "latent":
                features = torch.log(m.clamp_min(_MIN_MEAN)) - log_size if fixed else hidden
            h[:, genes] = (features - self.centre[genes]) / self.spread[genes]
        return x, mean

    def layers(self) -> list[list[int]]:
        """Genes in topological order; those of one layer do not act on each other."""
        return topological_layers(self.adjacency.cpu().numpy())

    @torch.no_grad()
    def draw_genes(
        self,
        genes: Tensor,
        base: Tensor,
        h: Tensor,
        targets: Tensor,
        log_size: Tensor,
        rng: torch.Generator | CommonNoise,
        drawn: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Values of genes G, their means given the parents and the predictor, hidden noise included, each (B, G).

        `base` (B, G) is what the predictor has beside parents, whose features are `h` (B, d); `drawn` (d,) as in :meth:`sample_cells`.
        """
        parents = self.mechanism(h, genes).clamp(self.knowledge.reach[0, genes], self.knowledge.reach[1, genes])
        if self.intervention == "hard":
            parents = parents * ~targets[:, genes]
        scale = self.log_scale[genes]
        scale = self.states.scale_beside(self.likelihood, scale, genes, torch.zeros_like(scale))
        predictor = base + parents
        if self.measurement == "latent":
            noise = random_numbers(rng, lambda own: torch.randn(base.shape, generator=own, device=base.device))
            predictor = predictor + torch.exp(-0.5 * scale) * noise
        own = None if drawn is None else drawn[genes]
        value, mean = sample_observation(self.likelihood, predictor, log_size, scale, rng, own)
        if self.likelihood == "normal":
            value, mean = (v * self.spread[genes] + self.centre[genes] for v in (value, mean))
        return value, mean, predictor
