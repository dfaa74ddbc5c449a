from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scgim.metrics import centred_correlation, discrimination

REFERENCE = np.array([1.0, 2.0, 3.0, 0.0])


def profiles(n=12, n_genes=20, seed=0) -> np.ndarray:
    """Contexts whose effects differ in strength by far."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, n_genes)) * rng.lognormal(0, 1, size=(n, 1))


def test_centred_correlation_by_hand():
    observed = REFERENCE + [[1.0, -1.0, 0.0, 0.0], [1.0, 0.0, 0.0, -1.0]]
    predicted = REFERENCE + [[2.0, 0.0, -2.0, 0.0], [-3.0, 0.0, 0.0, 3.0]]
    np.testing.assert_allclose(centred_correlation(observed, predicted, REFERENCE), [0.5, -1.0])


def test_a_common_response_earns_no_centred_correlation():
    observed = REFERENCE + 0.01 * profiles(5, 4)
    same = np.tile(REFERENCE, (5, 1))
    assert np.corrcoef(observed[0], same[0])[0, 1] > 0.99
    np.testing.assert_array_equal(centred_correlation(observed, same, REFERENCE), 0.0)
    np.testing.assert_array_equal(centred_correlation(observed, same + 1.0, REFERENCE), 0.0)
    np.testing.assert_array_equal(centred_correlation(same, observed, REFERENCE), 0.0)


def test_centred_correlation_does_not_know_the_control():
    observed, predicted, control = profiles(seed=1), profiles(seed=2), profiles(seed=3)[0]
    reference = observed.mean(axis=0)
    expected = centred_correlation(observed, predicted, reference)
    found = centred_correlation(observed - control, predicted - control, reference - control)
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(centred_correlation(observed, observed, reference), 1.0)


def test_discrimination_by_hand_ranks_predictions_given_an_observed_profile():
    observed = [[0.0], [1.0], [3.0]]
    # Distances from 0 are 1.2, 1, 0.9; from 1 they are 0.2, 0, 0.1; from 3, 1.8, 2, 2.1.
    np.testing.assert_array_equal(discrimination(observed, [[1.2], [1.0], [0.9]]), [0.0, 1.0, 0.0])
    # Tied with one and nearer than the other; tied with one and farther than the other; nearest.
    np.testing.assert_array_equal(discrimination(observed, [[0.5], [0.5], [2.0]]), [0.75, 0.75, 1.0])


def test_discrimination_of_constant_and_perfect_predictions():
    observed = profiles()
    constant = np.tile(profiles(seed=4)[:1], (len(observed), 1))
    np.testing.assert_array_equal(discrimination(observed, constant), 0.5)
    np.testing.assert_array_equal(discrimination(observed, observed), 1.0)


def test_discrimination_of_predictions_that_know_nothing_is_a_half():
    scores = [discrimination(profiles(seed=seed), profiles(seed=seed + 1000)).mean() for seed in range(200)]
    assert np.mean(scores) == pytest.approx(0.5, abs=0.02)


def test_cautious_predictions_are_no_worse_at_discrimination():
    observed = profiles(n_genes=200)
    np.testing.assert_array_equal(discrimination(observed, 0.1 * observed), 1.0)
    assert discrimination(observed, 10 * observed).mean() < 0.7


def test_one_context_cannot_be_told_from_others():
    assert np.isnan(discrimination([[1.0, 2.0]], [[1.0, 2.0]])).tolist() == [True]


@pytest.mark.parametrize("score", [discrimination, lambda x, y: centred_correlation(x, y, np.zeros(2))])
def test_wrong_profiles(score):
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], ["a", "b"], ["x", "y"])
    assert len(score(frame, frame)) == 2
    with pytest.raises(ValueError, match="differ in their index.*loc"):
        score(frame, frame.iloc[::-1])
    with pytest.raises(ValueError, match="differ in their columns"):
        score(frame, frame[["y", "x"]])
    with pytest.raises(ValueError, match=r"found \(2, 2\) and \(1, 2\)"):
        score(frame, frame.to_numpy()[:1])
    with pytest.raises(ValueError, match="contexts x genes"):
        score([1.0, 2.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="`predicted` has NaN"):
        score(frame, frame.where(frame > 1))


def test_wrong_reference():
    with pytest.raises(ValueError, match=r"one number for each of 4 genes, found shape \(3, 4\).*mean"):
        centred_correlation(profiles(3, 4), profiles(3, 4), profiles(3, 4))
