from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from sklearn.metrics import average_precision_score, roc_auc_score

from scgim.metrics import edge_metrics, expected_calibration_error, structural_hamming_distance, target_metrics

# 0 -> 1 -> 2, 0 -> 3
CHAIN = np.array([[0, 1, 0, 1], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 0),
        ({(0, 1): 0}, 1),  # missing
        ({(2, 3): 1}, 1),  # too many
        ({(0, 1): 0, (1, 0): 1}, 1),  # reversed
        ({(1, 0): 1}, 1),  # in both directions
        ({(0, 1): 0, (1, 0): 1, (2, 3): 1, (0, 3): 0}, 3),
        ({(2, 2): 1}, 0),  # the diagonal does not count
    ],
)
def test_structural_hamming_distance(changes, expected):
    other = CHAIN.copy()
    for edge, value in changes.items():
        other[edge] = value
    assert structural_hamming_distance(CHAIN, other) == expected
    assert structural_hamming_distance(other, CHAIN) == expected


def test_structural_hamming_distance_counts_pairs_one_by_one():
    rng = np.random.default_rng(0)
    A, B = rng.random((2, 7, 7)) < 0.3
    pairs = [(i, j) for i in range(7) for j in range(i)]
    assert structural_hamming_distance(A, B) == sum((A[i, j], A[j, i]) != (B[i, j], B[j, i]) for i, j in pairs)


def test_edge_metrics_by_hand():
    prob = np.zeros((4, 4))
    prob[0, 1], prob[1, 2], prob[3, 0], prob[0, 3], prob[2, 3] = 0.9, 0.6, 0.7, 0.2, 0.3
    np.fill_diagonal(prob, 0.99)
    found = edge_metrics(CHAIN, prob)
    assert found["n_edges"] == 3
    assert found["precision"] == pytest.approx(2 / 3)
    assert found["recall"] == pytest.approx(2 / 3)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["shd"] == 1
    assert found["orientation_accuracy"] == pytest.approx(2 / 3)
    # Ranks of the true edges among all entries: 1, 3, 5.
    assert found["auprc"] == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    # Pairs with an edge rank 1, 2 and 3 of 6.
    assert found["skeleton_auprc"] == 1
    assert edge_metrics(CHAIN, prob, threshold=0.1)["recall"] == 1


def test_edge_metrics_agree_with_scikit_learn_off_the_diagonal():
    rng = np.random.default_rng(1)
    A, prob = np.triu(rng.random((9, 9)) < 0.3, 1), rng.random((9, 9))
    off = ~np.eye(9, dtype=bool)
    found = edge_metrics(A, prob)
    assert found["auroc"] == pytest.approx(roc_auc_score(A[off], prob[off]))
    assert found["auprc"] == pytest.approx(average_precision_score(A[off], prob[off]))
    assert found["ece"] == pytest.approx(expected_calibration_error(A[off], prob[off]))


def test_perfect_recovery():
    found = edge_metrics(CHAIN, CHAIN)
    assert found.pop("n_edges") == 3
    assert found.pop("shd") == 0
    assert found.pop("ece") == 0
    assert set(found.values()) == {1.0}


def test_empty_graph_is_undefined_and_scores_have_no_calibration():
    found = edge_metrics(np.zeros((3, 3)), np.full((3, 3), 7.0))
    assert np.isnan([found[key] for key in ("auroc", "auprc", "skeleton_auprc", "orientation_accuracy", "ece")]).all()
    assert (found["f1"], found["n_edges"], found["shd"]) == (0.0, 6, 3)


def test_data_frames_are_matched_by_name_and_sparse_matrices_taken():
    genes = list("abcd")
    true = pd.DataFrame(CHAIN, genes, genes)
    prob = pd.DataFrame(np.random.default_rng(0).random((4, 4)), genes, genes)
    expected = edge_metrics(CHAIN, prob.to_numpy())
    assert edge_metrics(true, prob.loc[list("dbca"), list("cadb")]) == expected
    assert edge_metrics(sparse.csr_matrix(CHAIN), sparse.csr_array(prob.to_numpy())) == expected


def test_target_metrics_by_hand():
    true = np.array([[1, 0, 0], [0, 1, 1]])
    prob = np.array([[0.9, 0.8, 0.1], [0.0, 0.7, 0.4]])
    found = target_metrics(true, prob)
    assert found["n_targets"] == 3
    assert found["precision"] == found["recall"] == pytest.approx(2 / 3)
    assert found["auprc"] == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert found["auroc"] == pytest.approx(7 / 9)


def test_expected_calibration_error_by_hand():
    probs = np.array([0.05, 0.05, 0.95, 0.95, 1.0])
    labels = np.array([0, 1, 1, 1, 0])
    # First bin: 0.05 stated, 0.5 seen, two entries. Last bin: 2.9 / 3 stated, 2 / 3 seen, three entries.
    assert expected_calibration_error(labels, probs) == pytest.approx((2 * 0.45 + 3 * 0.3) / 5)
    assert expected_calibration_error(labels, probs, n_bins=1) == pytest.approx(0.0)


def test_calibrated_probabilities_have_no_calibration_error():
    rng = np.random.default_rng(0)
    probs = rng.random(200_000)
    assert expected_calibration_error(rng.random(200_000) < probs, probs) < 0.01
    assert expected_calibration_error(rng.random(200_000) < probs**3, probs) > 0.2


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (edge_metrics, (np.eye(3), np.eye(4)), r"shape \(3, 3\) and the estimate \(4, 4\)"),
        (edge_metrics, (np.ones((2, 3)), np.ones((2, 3))), "genes x genes"),
        (target_metrics, ([1, 0], [0.5, np.nan]), "NaN"),
        (expected_calibration_error, ([1, 0], [0.5, 1.2]), "between 0 and 1, found values from 0.5 to 1.2"),
        (expected_calibration_error, ([], []), "empty"),
        (
            edge_metrics,
            (pd.DataFrame(np.eye(2)), pd.DataFrame(np.eye(2), list("ab"))),
            "different labels in their index",
        ),
    ],
)
def test_wrong_input(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
