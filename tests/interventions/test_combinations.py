"""What combinations say of their members, in closed form, and what they do together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from scgim._priors import ShiftPrior
from scgim.interventions._combinations import share, together
from scgim.interventions._interventions import Interventions

SD = 0.3  # standard error of each estimate


def screen(
    n_drugs: int, pairs: list[tuple[int, int]], *, seed: int = 0, n_genes: int = 200, alone=None, interaction=None
):
    """Truth (E, d), estimates and precision (E + C, d) and members (C, E) of drugs with one target in ten."""
    rng = np.random.default_rng(seed)
    truth = rng.normal(0, 1.5, (n_drugs, n_genes)) * (rng.random((n_drugs, n_genes)) < 0.1)
    members = np.zeros((len(pairs), n_drugs), dtype=bool)
    for row, pair in zip(members, pairs, strict=True):
        row[list(pair)] = True
    sums = members @ truth
    for (row, gene), size in (interaction or {}).items():
        sums[row, gene] += size
    means = np.concatenate([truth, sums])
    precision = np.full(means.shape, SD**-2)
    if alone is not None:
        precision[:n_drugs][~np.isin(np.arange(n_drugs), alone)] = 0.0
    shift = means + SD * rng.normal(size=means.shape)
    return truth, *(torch.as_tensor(part) for part in (shift, precision, members))


def found(shift, precision, members):
    prior = ShiftPrior(0.1, slab_var=2.25, spike_var=1e-4)
    return share(shift, precision, members, torch.arange(members.shape[1]), prior)


def called(z: np.ndarray) -> np.ndarray:
    """What is significant at 5 % false discovery."""
    return stats.false_discovery_control(2 * stats.norm.sf(np.abs(z)), axis=None).reshape(z.shape) < 0.05


def test_drugs_of_no_combination_are_as_they_were():
    _, shift, precision, members = screen(4, [(0, 1)])
    out = found(shift, precision, members)
    torch.testing.assert_close(out.shift[2:], shift[2:4], rtol=0, atol=0)
    torch.testing.assert_close(out.precision[2:], precision[2:4], rtol=0, atol=0)


def test_a_drug_that_was_never_alone_is_the_rest_of_its_pair():
    """Of a sure partner: the difference, with the errors of both."""
    _, shift, precision, members = screen(2, [(0, 1)], alone=[0])
    shift[0, 0], shift[2, 0] = 4.0, 7.0  # far from nothing, so that it is a target of both for sure
    out = found(shift, precision, members)
    partner = 1 / (SD**-2 + 1 / 2.25)  # variance, with its prior, of which the mean is drawn to zero as well
    np.testing.assert_allclose(out.shift[1, 0], 7.0 - 4.0 * partner / SD**2, rtol=0.02)
    np.testing.assert_allclose(1 / out.precision[1, 0], SD**2 + partner, rtol=0.6)  # and what pairs may do beside


def test_additive_pairs_sharpen_what_is_known_of_their_members():
    pairs = [(a, b) for a in range(6) for b in range(a)]
    truth, shift, precision, members = screen(6, pairs)
    out = found(shift, precision, members)
    before, after = ((shift[:6].numpy() - truth) ** 2).mean(), ((out.shift.numpy() - truth) ** 2).mean()
    assert after < 0.4 * before
    assert (out.precision > 2 * precision[:6]).all()
    # and it is as sure as it says
    z = (out.shift.numpy() - truth) * out.precision.sqrt().numpy()
    assert 0.8 < z.std() < 1.2


def test_a_drug_of_pairs_alone_is_recovered_from_all_of_them():
    truth, shift, precision, members = screen(5, [(4, k) for k in range(4)], alone=[0, 1, 2, 3])
    out = found(shift, precision, members)
    error = ((out.shift[4].numpy() - truth[4]) ** 2).mean()
    assert error < 1.3 * SD**2 / 2  # four differences, each of two errors


def test_sparse_targets_tell_drugs_apart_that_have_only_partners_of_pairs():
    """No drug alone: what all pairs of one drug show is that drug's."""
    truth, shift, precision, members = screen(6, [(a, b) for a in range(3) for b in range(3, 6)], alone=[])
    out = found(shift, precision, members)
    shrunk = out.shift * out.precision / (out.precision + 1 / 2.25)
    assert np.corrcoef(shrunk.numpy().ravel(), truth.ravel())[0, 1] > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_no_interactions_are_called_where_there_are_none(seed):
    _, shift, precision, members = screen(8, [(a, a + 1) for a in range(7)], seed=seed)
    out = found(shift, precision, members)
    z = (out.interaction / out.variance.sqrt()).numpy()
    assert 0.75 < z.std() < 1.05  # surer than it says, since most genes are no targets
    assert called(z).sum() <= 1


def test_planted_interactions_are_found_and_their_size_as_well():
    planted = {(0, 3): 2.5, (2, 50): -2.5}
    truth, shift, precision, members = screen(8, [(a, a + 1) for a in range(7)], interaction=planted)
    out = found(shift, precision, members)
    calls = called((out.interaction / out.variance.sqrt()).numpy())
    assert calls[0, 3]
    assert calls[2, 50]
    assert calls.sum() <= 4
    np.testing.assert_allclose([out.interaction[k] for k in planted], list(planted.values()), atol=1.2)


def test_an_interaction_is_not_taken_for_an_effect_of_the_members():
    _, shift, precision, members = screen(2, [(0, 1)])
    shift[:2], shift[2] = 0.0, 4.0
    out = found(shift, precision, members)
    assert out.shift.abs().max() < 0.5


def test_genes_in_blocks_change_nothing(monkeypatch):
    _, shift, precision, members = screen(4, [(0, 1), (1, 2)], n_genes=11)
    whole = found(shift, precision, members)
    monkeypatch.setattr("scgim.interventions._combinations._BLOCK_VALUES", 1)
    for one, other in zip(whole, found(shift, precision, members), strict=True):
        torch.testing.assert_close(one, other)


def test_targets_unite_and_effects_and_variances_add_up():
    def tensor(*rows):
        return torch.tensor(rows, dtype=torch.float64)

    drugs = Interventions(
        target_probs=tensor([0.5, 0.0], [0.2, 1.0]),
        emax=tensor([1.0, 3.0], [-2.0, 1.0]),
        emax_sd=tensor([0.1, 0.1], [0.2, 0.3]),
        log_ec50=tensor([0.0, 0.0], [-100.0, -100.0]),
        log_ec50_sd=tensor([0.0, 0.0], [0.0, 0.0]),
        hill=tensor([1.0, 1.0], [1.0, 1.0]),
        background=tensor([[0.1, 0.2]], [[0.3, 0.4]]),
        grid=torch.zeros(1, dtype=torch.float64),
    )
    dose = torch.zeros(2, dtype=torch.float64)
    both = together(drugs, dose, torch.tensor([0, 0]), 1, tensor([1.0, 2.0]))
    np.testing.assert_allclose(both.target_probs, [[0.6, 1.0]])
    np.testing.assert_allclose(both.direct(dose[:1]), drugs.direct(dose).sum(0, keepdim=True))
    np.testing.assert_allclose(both.sd(dose[:1]) ** 2, (drugs.sd(dose) ** 2).sum(0, keepdim=True))
    np.testing.assert_allclose(both.background_at(dose[:1]), [[1.4, 2.6]])
    np.testing.assert_allclose(both.mean(dose[:1] + 3), both.mean(dose[:1]))  # at any dosage
