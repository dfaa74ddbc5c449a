"""Options of the simulator and their checks."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from scgim.data._drugs import FeatureKind
from scgim.data._graphs import GraphFamily
from scgim.data._mechanisms import MechanismKind

InterventionKind = Literal["shift", "hard"]
Likelihood = Literal["nb", "poisson", "normal"]
Measurement = Literal["none", "poisson"]

_CHOICES = {
    "graph": GraphFamily,
    "mechanism": MechanismKind,
    "intervention": InterventionKind,
    "likelihood": Likelihood,
    "features": FeatureKind,
    "measurement": Measurement,
}
_AT_LEAST_ONE = ("n_genes", "n_drugs", "n_cells", "n_controls", "n_features", "max_targets", "n_unseen_cells")
_AT_LEAST_ZERO = ("n_unseen_drugs", "n_confounders", "n_batches", "n_feedback")
_NOT_NEGATIVE = ("edges_per_gene", "library_size_sd", "feature_noise", "confounder_sd", "batch_sd")
_POSITIVE = ("mean_count", "latent_sd")
_RANGES = ("effect_size", "ec50", "hill")


@dataclass(kw_only=True, eq=False)
class ScreenSettings:
    """Options of a simulated drug screen; :func:`~scgim.data.simulate_screen` says what each one means."""

    n_genes: int = 20
    n_drugs: int = 40
    doses: tuple[float, ...] = (0.5, 1.0, 1.5, 2.0)
    n_cells: int = 50
    n_controls: int = 800
    graph: GraphFamily = "er"
    edges_per_gene: float = 2
    mechanism: MechanismKind = "linear"
    intervention: InterventionKind = "shift"
    likelihood: Likelihood = "nb"
    mean_count: float = 9.0
    library_size_sd: float = 0.0
    n_features: int = 20
    feature_noise: float = 0.1
    features: FeatureKind = "linear"
    max_targets: int = 3
    effect_size: tuple[float, float] | None = None
    ec50: tuple[float, float] = (0.5, 1.5)
    hill: tuple[float, float] = (1.0, 4.0)
    n_unseen_drugs: int = 0
    unseen_doses: tuple[float, ...] = ()
    n_unseen_cells: int | None = None
    measurement: Measurement = "none"
    latent_sd: float = 0.7
    n_confounders: int = 0
    confounder_sd: float = 0.5
    n_batches: int = 0
    batch_sd: float = 0.3
    n_feedback: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self._fill_defaults()
        self._check()

    def _fill_defaults(self) -> None:
        self.doses = tuple(float(dose) for dose in self.doses)
        self.unseen_doses = tuple(float(dose) for dose in self.unseen_doses)
        self.n_unseen_cells = self.n_cells if self.n_unseen_cells is None else self.n_unseen_cells
        self.effect_size = self.effect_range

    @property
    def effect_range(self) -> tuple[float, float]:
        """Range of the size of effects, the default for the likelihood where none was asked for."""
        if self.effect_size is not None:
            return self.effect_size
        return (1.5, 4.0) if self.likelihood == "normal" else (0.6, 1.6)

    def _check(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in get_args(choices):
                raise ValueError(
                    f"Expected `{name}` to be one of {list(get_args(choices))}, found {getattr(self, name)!r}."
                )
        for names, minimum in ((_AT_LEAST_ONE, 1), (_AT_LEAST_ZERO, 0)):
            for name in names:
                if getattr(self, name) != int(getattr(self, name)) or getattr(self, name) < minimum:
                    raise ValueError(
                        f"Expected `{name}` to be an integer of at least {minimum}, found {getattr(self, name)!r}."
                    )
        for name in (*_NOT_NEGATIVE, *_POSITIVE):
            if not getattr(self, name) >= 0 or (name in _POSITIVE and getattr(self, name) == 0):
                bound = "positive" if name in _POSITIVE else "zero or positive"
                raise ValueError(f"Expected `{name}` to be {bound}, found {getattr(self, name)!r}.")
        for name in _RANGES:
            low, high = getattr(self, name)
            if not 0 <= low <= high:
                raise ValueError(
                    f"Expected `{name}` to be a range (low, high) of numbers >= 0, found {getattr(self, name)!r}."
                )
        self._check_doses()
        if self.graph == "sf" and self.edges_per_gene != int(self.edges_per_gene):
            raise ValueError(
                f"Scale-free graphs need an integer `edges_per_gene`, found {self.edges_per_gene!r}. Use graph='er'."
            )
        if self.measurement == "poisson" and self.likelihood == "normal":
            raise ValueError("measurement='poisson' makes counts; it cannot be combined with likelihood='normal'.")

    def _check_doses(self) -> None:
        if not self.doses:
            raise ValueError("`doses` is empty; give at least one dose.")
        for name in ("doses", "unseen_doses"):
            doses = getattr(self, name)
            if len(set(doses)) < len(doses) or not all(0 < dose < float("inf") for dose in doses):
                raise ValueError(f"Expected `{name}` to be distinct positive numbers, found {list(doses)}.")
        both = sorted(set(self.doses) & set(self.unseen_doses))
        if both:
            raise ValueError(
                f"Doses {both} are in both `doses` and `unseen_doses`; a dose is either measured or unseen."
            )

    def settings(self) -> dict[str, Any]:
        """All options, with lists for tuples so that h5ad files can hold them."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
