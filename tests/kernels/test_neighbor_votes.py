"""Votes of neighbours, who may vote, and ranks: worked by hand, and against plain loops; compiled and in torch."""

from collections import Counter

import numpy as np
import pytest
import torch

from fastcluster_lm.errors import DataError, ShapeError
from fastcluster_lm.kernels.nearest_neighbors import count_below, ranks
from fastcluster_lm.kernels.neighbor_votes import first_others, most_shared, neighbor_votes
from fastcluster_lm.kernels.neighbor_votes import op as votes


@pytest.fixture(autouse=True, params=["as here", "in torch"])
def way(request, monkeypatch):
    """Take each test through the compiled kernel, where there is one, and through torch, as a GPU goes."""
    if request.param == "in torch":
        for module in (votes, ranks):
            monkeypatch.setattr(module, "library", lambda source: None)
    return request.param


def one_vote(indices, own, *, winners):
    """Let the neighbours of one layer and group vote under one labeling."""
    bank = torch.tensor([[[0, 0, 1, 1, 2]]])
    return neighbor_votes(torch.tensor([[indices]]), torch.tensor([[own]]), bank, winners=winners).item()


def test_share_and_accuracy_worked_by_hand():
    indices = [[0, 1, 2], [2, 0, 3], [4, 0, 2]]
    # neighbours' labels 0 0 1 | 1 0 1 | 2 0 1: the last is a three-way tie, which the nearest wins
    assert one_vote(indices, [0, 0, 0], winners=False) == pytest.approx(4 / 9, abs=1e-15)
    assert one_vote(indices, [0, 0, 0], winners=True) == pytest.approx(1 / 3, abs=1e-15)
    assert one_vote(indices, [0, 1, 2], winners=True) == 1.0


def test_a_tie_goes_to_the_label_whose_nearest_member_is_nearest():
    # labels in order of distance 1 0 0 1: two each, and 1 has the nearest member
    assert one_vote([[2, 0, 1, 3]], [1], winners=True) == 1.0
    assert one_vote([[2, 0, 1, 3]], [0], winners=True) == 0.0


def test_batches_of_layers_groups_and_labelings_equal_plain_loops():
    rng = np.random.default_rng(0)
    n_sets, n_layers, n_groups, n_queries, n_bank, k = 3, 2, 4, 6, 9, 5
    indices = rng.permuted(np.tile(np.arange(n_bank), (n_layers, n_groups, n_queries, 1)), axis=-1)[..., :k]
    own, bank = rng.integers(0, 3, (n_sets, n_groups, n_queries)), rng.integers(0, 3, (n_sets, n_groups, n_bank))
    given = [torch.from_numpy(x) for x in (indices, own, bank)]
    share, accuracy = (neighbor_votes(*given, winners=winners) for winners in (False, True))
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


@pytest.mark.parametrize("shapes", [((1, 3, 2), (1, 3)), ((1, 1, 3, 2), (1, 4)), ((1, 2, 3, 2), (1, 3))])
def test_votes_refuse_labels_that_do_not_fit_the_indices(shapes):
    indices, own = (torch.zeros(shape, dtype=torch.int64) for shape in (shapes[0], (1, *shapes[1])))
    with pytest.raises(ShapeError, match=r"expected \(layers, groups, q, k\)"):
        neighbor_votes(indices, own, torch.zeros(1, 1, 5, dtype=torch.int64), winners=False)


def test_the_first_others_are_those_of_a_plain_loop():
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randperm(30, generator=generator)[:20] for _ in range(3 * 11)]).view(3, 11, 20)
    query_ids, bank_ids = torch.arange(11) % 4, torch.arange(30) % 4
    found = first_others(indices, query_ids, bank_ids, 5)
    for layer in range(3):
        for query in range(11):
            others = [j for j in indices[layer, query].tolist() if bank_ids[j] != query_ids[query]]
            assert found[layer, query].tolist() == others[:5]


def test_too_few_others_are_said_and_not_made_up():
    indices = torch.tensor([[[0, 1, 2], [2, 1, 0]]])
    assert first_others(indices, torch.tensor([0, 1]), torch.tensor([0, 0, 1]), 2) is None
    assert first_others(indices, torch.tensor([0, 1]), torch.tensor([0, 0, 1]), 1).tolist() == [[[2], [1]]]


@pytest.mark.parametrize("kinds", [1, 3, 40])
def test_the_most_that_share_an_identity_are_counted_in_each_layer(kinds):
    generator = torch.Generator().manual_seed(kinds)
    query_ids = torch.randint(kinds, (4, 30), generator=generator) - 2
    bank_ids = torch.randint(kinds, (4, 50), generator=generator) - 2
    bank_ids[3] = 2**40 + torch.arange(50)
    expected = (query_ids[:, :, None] == bank_ids[:, None]).sum(-1).amax(-1)
    assert torch.equal(most_shared(query_ids, bank_ids), expected) and expected[3] == 0
    assert torch.equal(most_shared(query_ids[0], bank_ids[0]), expected[0])
    assert int(most_shared(bank_ids[3], bank_ids[3].flip(0))) == 1


def test_an_index_outside_the_bank_is_refused():
    with pytest.raises(ShapeError, match=r"indices have shape \(1, 1, 2\); expected \(layers, 2, many\)"):
        first_others(torch.tensor([[[0, 1]]]), torch.zeros(2).long(), torch.zeros(3).long(), 1)
    with pytest.raises(ShapeError, match="rows differ"):
        count_below(torch.zeros(2, 3), torch.zeros(4, 1))
    assert first_others(torch.zeros(1, 2, 0).long(), torch.zeros(2).long(), torch.zeros(3).long(), 1) is None
    with pytest.raises(DataError, match="indices run from 0 to 3; expected 0 to 2"):
        first_others(torch.tensor([[[0, 3]]]), torch.zeros(1).long(), torch.zeros(3).long(), 1)


def test_votes_refuse_an_index_outside_the_bank(way):
    labels = torch.zeros(1, 1, 3, dtype=torch.int64)
    assert neighbor_votes(torch.tensor([[[[0, 1]]]]), labels[..., :1], labels, winners=False).item() == 1
    with pytest.raises(DataError, match="indices run from 0 to 3"):
        neighbor_votes(torch.tensor([[[[0, 3]]]]), labels[..., :1], labels, winners=False)


@pytest.mark.parametrize("n", [1, 7, 8, 9, 100])
def test_values_below_thresholds_are_counted(n):
    values = torch.randn(2, 3, n, generator=torch.Generator().manual_seed(n)).round(decimals=1)
    values[0, 0, 0] = torch.inf
    thresholds = torch.stack([values[..., 0], values.median(-1).values, torch.full((2, 3), torch.inf)], -1)
    found = count_below(values, thresholds)
    assert found.tolist() == [
        [[sum(v < t for v in row) for t in limits] for row, limits in zip(rows, levels, strict=True)]
        for rows, levels in zip(values.tolist(), thresholds.tolist(), strict=True)
    ]


@pytest.mark.parametrize("n_labelings", [1, 19, 20, 21, 43])
@pytest.mark.parametrize("winners", [False, True])
def test_votes_under_many_labelings_are_those_under_each(n_labelings, winners, way):
    # labels of every sign, so that none is taken for a place without a labeling
    generator = torch.Generator().manual_seed(n_labelings)
    indices = torch.randint(30, (3, 3, 11, 4), generator=generator)
    own = torch.randint(-1, 3, (n_labelings, 3, 11), generator=generator)
    bank = torch.randint(-1, 3, (n_labelings, 3, 30), generator=generator)
    found = neighbor_votes(indices, own, bank, winners=winners)
    for s in range(n_labelings):
        for layer in range(3):
            for group in range(3):
                labels = bank[s, group][indices[layer, group]].tolist()
                if winners:
                    won = [max(row, key=lambda label: (row.count(label), -row.index(label))) for row in labels]
                    expected = sum(a == b for a, b in zip(won, own[s, group].tolist(), strict=True)) / 11
                else:
                    expected = sum(row.count(b) for row, b in zip(labels, own[s, group].tolist(), strict=True)) / 44
                assert found[s, layer, group] == pytest.approx(expected)
