"""Simulated drug screens."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scgim.data._simulator import ScreenSimulator

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from scgim.data._drugs import FeatureKind
    from scgim.data._graphs import GraphFamily
    from scgim.data._mechanisms import MechanismKind
    from scgim.data._settings import InterventionKind, Likelihood, Measurement


def simulate_screen(
    *,
    n_genes: int = 20,
    n_drugs: int = 40,
    doses: Sequence[float] = (0.5, 1.0, 1.5, 2.0),
    n_cells: int = 50,
    n_controls: int = 800,
    graph: GraphFamily = "er",
    edges_per_gene: float = 2,
    mechanism: MechanismKind = "linear",
    intervention: InterventionKind = "shift",
    likelihood: Likelihood = "nb",
    mean_count: float = 9.0,
    library_size_sd: float = 0.0,
    n_features: int = 20,
    feature_noise: float = 0.1,
    features: FeatureKind = "linear",
    max_targets: int = 3,
    effect_size: tuple[float, float] | None = None,
    ec50: tuple[float, float] = (0.5, 1.5),
    hill: tuple[float, float] = (1.0, 4.0),
    n_unseen_drugs: int = 0,
    unseen_doses: Sequence[float] = (),
    n_unseen_cells: int | None = None,
    measurement: Measurement = "none",
    latent_sd: float = 0.7,
    n_confounders: int = 0,
    confounder_sd: float = 0.5,
    n_batches: int = 0,
    batch_sd: float = 0.3,
    n_feedback: int = 0,
    seed: int = 0,
) -> AnnData:
    r"""Screen of drugs at several doses, with vehicle controls and the truth, ready for :meth:`scgim.model.GIM.setup_anndata`.

    Cells follow a structural causal model over a random graph,

    .. math::
        x_j \sim \mathrm{NB}(s \, e^{\eta_j}, \theta_j), \qquad
        \eta_j = b_j + f_j(h_{pa(j)}) + \psi_j(u, c), \qquad
        \psi_j(u, c) = \frac{E_{uj} \, c^{n_{uj}}}{\mathrm{EC50}_{uj}^{n_{uj}} + c^{n_{uj}}}

    where :math:`h_i` is :math:`\log(1 + x_i / s)` standardised on control cells, and drug :math:`u` at dose :math:`c` has an
    effect :math:`\psi_j` on its few targets only. The protocol is that of the GIM paper's experiments
    :cite:p:`schneider2025`, carried to counts.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_drugs
        Number of drugs measured.
    doses
        Doses at which they are measured.
    n_cells
        Cells of each context, one drug at one dose.
    n_controls
        Control cells.
    graph
        `"er"` (Erdos-Renyi) or `"sf"` (scale-free, hubs regulate).
    edges_per_gene
        Edges divided by genes; an expectation for `"er"`, the number of parents of each new gene (an integer) for `"sf"`.
    mechanism
        `"linear"`, or `"mlp"`: :math:`f_j` is a random network of one tanh layer with as much signal.
    intervention
        `"shift"` adds the effect to the log mean given the parents; `"hard"` cuts a target from its parents as well.
    likelihood
        `"nb"` or `"poisson"` counts, or `"normal"`: continuous values, every gene with mean 0 and variance 1 in control cells,
        so that nothing but dependence tells about direction.
    mean_count
        Mean count in control cells at size factor 1, averaged over genes (genes vary by a factor between 1/3 and 5/3).
        At small values some cells have no counts at all and have to be filtered, as in real data.
    library_size_sd
        Standard deviation of the log size factor.
    n_features
        Number of drug features.
    feature_noise
        Standard deviation of the noise on features, which have a standard deviation of 1.
    features
        `"linear"`: the principal components of the drugs' dose-response curves; `"nonlinear"`: a random tanh layer of them.
    max_targets
        Drugs have 1 to this many targets.
    effect_size
        Range of the size of :math:`E`, whose sign is random: a log fold change for counts, by default 0.6 to 1.6; in
        standard deviations for continuous data, by default 1.5 to 4.
    ec50
        Range of the dose of half the effect.
    hill
        Range of the steepness :math:`n`.
    n_unseen_drugs
        Further drugs, at `doses`, marked `"unseen_drug"`.
    unseen_doses
        Further doses of the `n_drugs` drugs, marked `"unseen_dose"`.
    n_unseen_cells
        Cells of each unseen context; as `n_cells` by default.
    measurement
        `"poisson"`: the graph acts on hidden log expression :math:`z` with Gaussian noise, and counts are
        :math:`x \sim \mathrm{Poisson}(s \, e^z)`. `likelihood` then has no meaning.
    latent_sd
        Standard deviation of :math:`z` in control cells.
    n_confounders
        Hidden common causes, each of a quarter of the genes.
    confounder_sd
        Standard deviation that a hidden cause adds to the log mean (in units of the noise for continuous data).
    n_batches
        Observed batches, to which cells belong at random.
    batch_sd
        Standard deviation of the effect of a batch on the log mean of a gene.
    n_feedback
        Edges that close cycles. Cells are then drawn by 20 sweeps over the genes. These edges are linear.
    seed
        Seed. Graph, mechanisms, drugs and cells have random streams of their own.

    Returns
    -------
    AnnData
        `X`: counts (csr), or a dense matrix if continuous. `obs`: `perturbation` (categorical, with `"control"`), `dosage`,
        `split` (`"train"`, `"unseen_drug"`, `"unseen_dose"`), `size_factor`, and `batch` if there are any.
        `uns["drug_embedding"]`: features, one row a drug, without controls (only there, the form that scales; nothing in
        `obsm`). `uns["simulation"]`: the arguments.

        The truth: `varp["true_adjacency"]` (entry [i, j] for i -> j), `varp["true_weights"]` (slope of the log mean of j in the
        standardised expression of i); `varm["true_targets"]`, `["true_shifts"]` (direct effect at the largest of `doses`),
        `["true_emax"]`, `["true_ec50"]` and `["true_hill"]` (NaN where the gene is no target), genes x drugs;
        `layers["true_latent"]` (:math:`z`) with `measurement="poisson"`.

    Raises
    ------
    ValueError
        If an argument is out of range, or two of them cannot be combined.

    See Also
    --------
    ScreenSimulator : the same world, for drawing combinations of drugs and experiments on genes.

    Examples
    --------
    >>> adata = scgim.data.simulate_screen(n_drugs=20, n_unseen_drugs=5, unseen_doses=(0.75,), seed=1)
    >>> train = adata[adata.obs["split"] == "train"].copy()
    """
    return ScreenSimulator(**locals()).screen()
