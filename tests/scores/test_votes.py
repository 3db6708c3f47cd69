"""Votes of neighbours: worked by hand, and batches against plain loops."""

from collections import Counter

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import ShapeError
from fastcluster_lm.kernels.neighbor_votes import op
from fastcluster_lm.scores.votes import enough_neighbors, knn_accuracy, knn_share

BANK = torch.tensor([0, 0, 1, 1, 2])


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take each test through the compiled kernel, where there is one, and through torch, as a GPU goes."""
    if request.param == "in torch":
        monkeypatch.setattr(op, "library", lambda source: None)


def test_share_and_accuracy_worked_by_hand() -> None:
    indices = torch.tensor([[[0, 1, 2], [2, 0, 3], [4, 0, 2]]])
    own = torch.tensor([0, 0, 0])
    # neighbours' labels 0 0 1 | 1 0 1 | 2 0 1: the last is a three-way tie, which the nearest wins
    assert knn_share(indices, own, BANK).tolist() == [pytest.approx(4 / 9, abs=1e-15)]
    assert knn_accuracy(indices, own, BANK).tolist() == [pytest.approx(1 / 3, abs=1e-15)]
    assert knn_accuracy(indices, torch.tensor([0, 1, 2]), BANK).tolist() == [1.0]


def test_a_tie_goes_to_the_label_whose_nearest_member_is_nearest() -> None:
    # labels in order of distance 1 0 0 1: two each, and 1 has the nearest member
    indices = torch.tensor([[[2, 0, 1, 3]]])
    assert knn_accuracy(indices, torch.tensor([1]), BANK).item() == 1.0
    assert knn_accuracy(indices, torch.tensor([0]), BANK).item() == 0.0


def test_batches_of_layers_groups_and_labelings_equal_plain_loops() -> None:
    rng = np.random.default_rng(0)
    n_sets, n_layers, n_groups, n_queries, n_bank, k = 3, 2, 4, 6, 9, 5
    indices = rng.permuted(np.tile(np.arange(n_bank), (n_layers, n_groups, n_queries, 1)), axis=-1)[..., :k]
    own, bank = rng.integers(0, 3, (n_sets, n_groups, n_queries)), rng.integers(0, 3, (n_sets, n_groups, n_bank))
    given = [torch.from_numpy(x) for x in (indices, own, bank)]
    share, accuracy = knn_share(*given), knn_accuracy(*given)
    assert share.dtype == torch.float64
    for s, layer, g in np.ndindex(n_sets, n_layers, n_groups):
        shares, wins = [], []
        for q in range(n_queries):
            found = [int(bank[s, g, i]) for i in indices[layer, g, q]]
            votes = Counter(found)
            winner = next(label for label in found if votes[label] == max(votes.values()))
            shares.append(votes[int(own[s, g, q])] / k)
            wins.append(winner == own[s, g, q])
        assert share[s, layer, g].item() == pytest.approx(np.mean(shares), abs=1e-12)
        assert accuracy[s, layer, g].item() == pytest.approx(np.mean(wins), abs=1e-12)
    one_group = knn_share(given[0][:, 1], given[1][:, 1], given[2][:, 1])
    assert torch.equal(one_group, share[:, :, 1])


def test_says_where_there_are_enough_neighbors() -> None:
    query, bank = torch.tensor([[0, 1], [5, 5]]), torch.tensor([[0, 0, 1, 2], [0, 0, 1, 2]])
    assert enough_neighbors(query, bank, 2).tolist() == [True, True]
    assert enough_neighbors(query, bank, 3).tolist() == [False, True]
    assert enough_neighbors(query, bank, 5).tolist() == [False, False]


def test_refuses_labels_that_do_not_fit_the_indices() -> None:
    with pytest.raises(ShapeError, match=r"expected \(L, G, q, k\)"):
        knn_share(torch.zeros(1, 3, 2, dtype=torch.int64), torch.zeros(4, dtype=torch.int64), BANK)
