r"""Effects carried to levels of the effect modifier in which a drug was not measured: a cell line of which there are controls only.

Two things differ between levels. A fold change in one cannot be a fold change in another whose control cells express the gene
already, so that effects are carried on the scale of a power of the mean, between log means (power 0) and means (power 1),

.. math:: r_l = \left[(\mu_l e^{E_l} + c)^\lambda - (\mu_l + c)^\lambda\right] / \lambda

with the mean :math:`\mu_l` of control cells. And levels that are alike answer alike: r is a Gaussian process over levels, of a common
part and a radial kernel of the distance of their control profiles. Power, variance and length of the kernel are chosen by leaving
measured levels out, where there are two. Levels are few, so that the best of many settings is best by chance: unless it takes more off
the error than levels differ in this by chance, log fold changes are carried as they are, as the mean of the levels. So may the direct effects
be instead, and the network in the other level says what becomes of them; the better of the two, or half of each, is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

# What is chosen from, coarse steps: conventions. Lengths are in the mean squared distance of two levels.
_POWERS, _SHARES, _LENGTHS = (0.0, 0.25, 0.5), (0.0, 0.3, 1.0, 3.0), (0.5, 1.0, 4.0)
_NETWORK = (0.0, 0.5, 1.0)
_MIN_LEVELS = 2  # of which one is left out
_NUGGET = 0.05  # variance, in units of that of the common part, of what is of one level alone: convention
_LITTLE, _LITTLE_IN_PROFILES = 0.02, 0.05  # counts added to means, so that genes that are never seen have a logarithm
_LEAST = 1e-3  # of a mean, that is left of it at least: convention
_MAX_CHANGE = 15.0  # of a log mean, as the likelihood has no smaller
_MIN_INFORMATION, _TINY = 1e-6, 1e-9  # guards: below the first nothing is known; and of quotients


@dataclass(frozen=True)
class Transfer:
    """How effects are carried between L levels.

    Parameters
    ----------
    mean
        Mean of each gene in the control cells of each level per unit of size factor, (L, d); None for continuous values, whose
        differences are carried as they are.
    distance
        Squared distance of the control profiles, in units of its mean over pairs, (L, L).
    power
        Power of the mean, lambda.
    share
        Variance of what alike levels share, in units of that of the common part.
    length
        Length of its kernel.
    error
        Mean squared error of heights in levels left out, beyond the error of what they are compared with.
    network
        Share of what the network says of mean direct effects, in place of the changes of other levels.
    """

    mean: Tensor | None
    distance: Tensor
    power: float = 0.25
    share: float = 0.3
    length: float = 1.0
    error: float = 0.0
    network: float = 0.0

    @property
    def settings(self) -> list[float]:
        """What was chosen, in the order of :meth:`with_settings`."""
        return [self.power, self.share, self.length, self.error, self.network]

    def with_settings(self, settings: list[float]) -> Transfer:
        """These levels, with settings as :attr:`settings` lists them."""
        power, share, length, error, network = settings
        return replace(self, power=power, share=share, length=length, error=error, network=network)

    @staticmethod
    def between(mean: Tensor, *, counts: bool, told: Tensor | None = None, n_usual: int | None = None) -> Transfer:
        """With the usual settings, from means of the controls (L, d).

        Levels are compared by the genes that are `told`, boolean (d,); None for all. The unit of distance is that of the first `n_usual`
        levels; None for all.
        """
        profile = torch.log(mean + _LITTLE_IN_PROFILES) if counts else mean
        profile = profile if told is None else profile[:, told]
        distance = (profile[:, None] - profile[None]).square().mean(-1)
        n = len(mean) if n_usual is None else n_usual
        usual = distance[:n, :n].sum() / max(1, n * (n - 1))
        return Transfer(mean if counts else None, distance / usual.clamp_min(_TINY))

    def weights(self, known: Tensor) -> Tensor:
        """Weights of the levels that are `known` (L,) in the prediction of each, (L, L); rows are predicted levels."""
        own = 1 + self.share * torch.exp(-self.distance / self.length)
        out = torch.zeros_like(own)
        noise = _NUGGET * torch.eye(int(known.sum()), dtype=own.dtype)
        out[:, known] = torch.linalg.solve(own[known][:, known] + noise, own[known]).T
        return out

    def carried(self, heights: Tensor, known: Tensor) -> Tensor:
        """Heights (Q, L, d) predicted for all levels from those in which each drug is `known` (Q, L)."""
        r, out = self._to_power(heights), torch.zeros_like(heights)
        for pattern in torch.unique(known, dim=0):
            drugs = (known == pattern).all(1)
            if pattern.any():
                out[drugs] = torch.einsum("lk,qkd->qld", self.weights(pattern), r[drugs])
        return self._to_height(out)

    def mixed(self, carried: Tensor, through: Tensor, heights: Tensor, known: Tensor) -> Tensor:
        """Changes that are carried, and what the network makes of direct effects, each by its share, (Q, d).

        The network is believed no further than a drug went where it is `known` (Q, L), by its `heights` there (Q, L, d): in other cells parents can
        leave the range in which it was learned.
        """
        seen = torch.where(known[..., None], heights, 0.0)
        within = through.clamp(seen.amin(1).clamp_max(0.0), seen.amax(1).clamp_min(0.0))
        return carried + self.network * (within - carried)

    def _to_power(self, heights: Tensor) -> Tensor:
        if self.mean is None:
            return heights
        treated = self.mean * heights.clamp(-_MAX_CHANGE, _MAX_CHANGE).exp()
        return self._power(treated) - self._power(self.mean)

    def _to_height(self, r: Tensor) -> Tensor:
        if self.mean is None:
            return r
        total = self._power(self.mean) + r
        treated = total.exp() if not self.power else (1 + self.power * total).clamp_min(_TINY) ** (1 / self.power)
        return (treated - _LITTLE).clamp_min(_LEAST * self.mean).log() - self.mean.log()

    def _power(self, mean: Tensor) -> Tensor:
        return (mean + _LITTLE).log() if not self.power else ((mean + _LITTLE) ** self.power - 1) / self.power

    def chosen(
        self, heights: Tensor, information: Tensor, weight: Tensor | None = None, through: Tensor | None = None
    ) -> Transfer:
        """Settings under which levels left out are predicted best.

        Parameters
        ----------
        heights, information
            Changes of log means in each level, or direct effects, and their precision, 0 where nothing is known, (Q, L, d).
        weight
            How much each gene counts, (Q, d); None for all alike.
        through
            What the network makes of the mean direct effects of the other levels, (Q, L, d); None where it has no part.
        """
        known = information.amax(2) > _MIN_INFORMATION
        several = known.sum(1) >= _MIN_LEVELS
        if not several.any():
            return self
        heights, information, known = heights[several], information[several], known[several]
        through = None if through is None else through[several]
        error = 1 / information.clamp_min(_MIN_INFORMATION)
        usual = float((heights.square() - error)[known].mean().clamp_min(_TINY))
        told = usual / (usual + error)
        told = told if weight is None else told * weight[several][:, None]
        plain = replace(self, power=0.0, share=0.0, network=0.0)
        trials = [replace(plain, network=a) for a in (_NETWORK if through is not None else _NETWORK[:1])]
        n_simple = len(trials)
        trials += [replace(plain, power=p, share=s, length=n) for p, s, n in self._choices()]
        judged = [trial._judged(heights, error, known, told, usual, through) for trial in trials]
        # in logarithms, so that no level counts for more than others
        log_loss = torch.stack([loss for loss, _ in judged]).clamp_min(_TINY).log()  # (trials, levels)
        simple = int(log_loss[:n_simple].mean(1).argmin())
        gain = log_loss[simple] - log_loss
        best = int(gain.mean(1).argmax())
        is_clear = gain[best].mean() > gain[best].std() / gain.shape[1] ** 0.5
        return judged[best if is_clear else simple][1]

    def _choices(self) -> product:
        return product(_POWERS if self.mean is not None else (0.0,), _SHARES, _LENGTHS)

    def _judged(
        self,
        heights: Tensor,
        error: Tensor,
        known: Tensor,
        weight: Tensor,
        usual: float,
        through: Tensor | None,
    ) -> tuple[Tensor, Transfer]:
        """Squared error of each level left out, of log1p of means for counts, and these settings with the error of heights."""
        loss, missed, total = [], 0.0, 0.0
        for level in torch.nonzero(known.any(0))[:, 0].tolist():
            drugs, others = known[:, level], known.clone()
            others[:, level] = False
            predicted = self.carried(heights, others)[drugs, level]
            if through is not None:
                predicted = self.mixed(predicted, through[drugs, level], heights[drugs], others[drugs])
            observed, w = heights[drugs, level], weight[drugs, level]
            off = (predicted - observed).square()
            missed += float((w * (off - error[drugs, level]).clamp_max(usual)).sum())  # no worse than not to know
            total += float(w.sum())
            if self.mean is not None:
                off = (self._log1p(predicted, level) - self._log1p(observed, level)).square()
            loss.append((w * off).sum())
        return torch.stack(loss), replace(self, error=max(0.0, missed / max(total, _TINY)))

    def _log1p(self, heights: Tensor, level: int) -> Tensor:
        return torch.log1p(self.mean[level] * heights.clamp(-_MAX_CHANGE, _MAX_CHANGE).exp())  # type: ignore[index]
