"""Score how well two clusterings of the same points agree: ARI, AMI and three F1s; it finds no clusters."""

import numpy as np
from numpy.typing import ArrayLike
from torch import Tensor

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.label_agreement.reference import (
    Tables,
    adjusted_mutual_information,
    adjusted_rand,
    bcubed_f1,
    matched_f1,
    pairwise_f1,
)
from fastcluster_lm.scores.contingency import contingency_tables, factorize, host_array


def adjusted_rand_score(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> float:
    """Score the pairs of points on which two clusterings agree, 0 on average by chance, 1 if they are the same.

    Shapes: labels_true (n,), labels_pred (n,) -> one float in [-0.5, 1]
    Errors: ShapeError if the labels are not 1-D or differ in length
    Source: Hubert & Arabie 1985; equals scikit-learn's to 1e-12, empty and one-class inputs included
    """
    return float(adjusted_rand(_one_table(labels_true, labels_pred))[0])


def adjusted_mutual_info_score(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> float:
    """Score the information two clusterings share beyond chance, over the mean of their entropies.

    Shapes: labels_true (n,), labels_pred (n,) -> one float, 0 on average by chance, 1 if they are the same
    Errors: ShapeError if the labels are not 1-D or differ in length
    Source: Vinh, Epps & Bailey 2010, arithmetic normaliser; equals scikit-learn's to 1e-9 up to 1e4 points
    """
    return float(adjusted_mutual_information(_one_table(labels_true, labels_pred))[0])


def f1_score(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> float:
    """Average the F1 of every true label with its own cluster, under the one-to-one matching that makes this largest.

    Shapes: labels_true (n,), labels_pred (n,) -> one float in [0, 1]; a true label without a cluster counts 0
    Errors: ShapeError if the labels are not 1-D or differ in length
    Source: our choice: the matching maximises the sum of F1 = 2 n_ij / (a_i + b_j) and not the overlap, so that the
            score does not depend on which of several equal matchings is found
    """
    return float(matched_f1(_one_table(labels_true, labels_pred))[0])


def f1_pairwise_score(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> float:
    """Score pairs of points: the F1 of "in one cluster" as a prediction of "of one label".

    Shapes: labels_true (n,), labels_pred (n,) -> one float in [0, 1]; 1 if neither side has a pair
    Errors: ShapeError if the labels are not 1-D or differ in length
    """
    return float(pairwise_f1(_one_table(labels_true, labels_pred))[0])


def f1_bcubed_score(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> float:
    """Score points: the harmonic mean of BCubed precision and recall, each averaged over all points.

    Shapes: labels_true (n,), labels_pred (n,) -> one float in [0, 1]
    Errors: ShapeError if the labels are not 1-D or differ in length
    Source: Bagga & Baldwin 1998; Amigo et al. 2009
    """
    return float(bcubed_f1(_one_table(labels_true, labels_pred))[0])


def _one_table(labels_true: ArrayLike | Tensor, labels_pred: ArrayLike | Tensor) -> Tables:
    shapes = [np.shape(host_array(labels)) for labels in (labels_true, labels_pred)]
    if any(len(shape) != 1 for shape in shapes) or shapes[0] != shapes[1]:
        raise ShapeError(f"labels_true has shape {shapes[0]}, labels_pred {shapes[1]}; both must be (n,) with one n")
    true, n_true = factorize(labels_true)
    pred, n_pred = factorize(labels_pred)
    return np.asarray(contingency_tables(true, pred, n_true=n_true, n_pred=n_pred))[None]
