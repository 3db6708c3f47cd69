"""What proves nearest_neighbors: distances in float64, ties, ids, far and tight points, every size of the kept ones."""

import torch

from fastcluster_lm.kernels.nearest_neighbors import cuda
from tests.kernels.cases import Kernel, tiles_of
from tests.kernels.memory import assert_ten_equal, padded, poisoned
from tests.tolerances import KNN_DISTANCE

# layers, queries, bank, coordinates, k
SHAPES = [(1, 29, 97, d, 5) for d in (1, 2, 15, 16, 17)]
SHAPES += [
    (2, 61, 61, 3, 17),
    (1, 1, 1, 3, 1),
    (2, 0, 5, 4, 2),
    (0, 5, 5, 4, 2),
    (1, 7, 131, 2, 90),
    (1, 3, 19, 768, 4),
]
SLOW = [(2, 37, 263, d, k) for d in (1, 2, 15, 16, 17) for k in (1, 32, 33, 90, 129, 250)]
SLOW += [(1, 9, 140, 768, 90), (1, 5, 19, 2048, 4)]


def kernels() -> list[Kernel]:
    from fastcluster_lm.kernels.nearest_neighbors.kernel import nearest_neighbors_kernel

    rest = {"own_ptr": "*i64", "other_ptr": "*i64", "distances_ptr": "*fp32", "indices_ptr": "*i64"}
    return [
        Kernel(
            f"nearest_neighbors {name}",
            nearest_neighbors_kernel,
            {"q_ptr": f"*{name}", "b_ptr": f"*{name}", **rest},
            tiles_of(cuda.block_sizes, ((k, dtype) for k in range(1, cuda.MOST_NEIGHBORS + 1))),
        )
        for name, dtype in (("fp32", torch.float32), ("fp64", torch.float64))
    ]


def check(shape: tuple[int, ...], device: torch.device) -> None:
    n_layers, n_queries, n_bank, width, k = shape
    generator = torch.Generator().manual_seed(width)
    bank = torch.randn(n_layers, n_bank, width, generator=generator).to(device)
    # tight points far from 0, where a matmul of squares would cancel; and copies, which tie
    bank[:, n_bank // 2 :] = 30 + bank[:, n_bank // 2 :] * 1e-4
    bank[:, n_bank // 3 : n_bank // 3 + 4] = bank[:, :1].clone()
    own = n_queries == n_bank
    queries = bank.clone() if own else bank[:, torch.arange(n_queries) % n_bank] + 1e-3
    ids = (None, None)
    if own and n_bank > 4 * k // 3:
        ids = torch.arange(n_queries, device=device) // 2, torch.arange(n_bank, device=device) // 2
    elif n_bank > k + 3 and n_queries % 2:
        ids = (
            (torch.arange(n_layers * n_queries, device=device) % 41).view(n_layers, -1),
            torch.arange(n_bank, device=device),
        )
    _judge(queries, bank, k, ids)
    if width == 2:
        assert_ten_equal(lambda: cuda.launch(queries[:, :8], bank[:, :20], min(k, 20), None, None))
    if width == 17:
        _judge(queries.double() + 1e6, bank.double() + 1e6, k, ids)


def _judge(queries: torch.Tensor, bank: torch.Tensor, k: int, ids: tuple) -> None:
    with poisoned():
        distances, indices = cuda.launch(padded(queries), padded(bank), k, *ids)
    assert distances.shape == indices.shape == (*queries.shape[:2], k)
    if indices.numel() == 0:
        return
    assert int(indices.min()) >= 0 and int(indices.max()) < bank.shape[1]
    every = (queries.double()[:, :, None] - bank.double()[:, None]).square().sum(-1).sqrt()
    if ids[0] is not None:
        every.masked_fill_(ids[0][..., :, None] == ids[1][..., None, :], torch.inf)
    found = every.gather(-1, indices)
    truth, order = every.sort(dim=-1, stable=True)
    worst = float((found / truth[..., k - 1 : k].clamp(min=1e-30)).max())
    assert worst <= 1 + KNN_DISTANCE, f"a neighbour is {worst} times as far as the k-th"
    assert bool((found.amax(-1) < torch.inf).all()), "a point of the query's own id is among its neighbours"
    assert bool(((distances - found).abs() <= KNN_DISTANCE * found + 1e-30).all())
    assert bool((distances.diff() >= 0).all()), "neighbours are not nearest first"
    assert all(len(set(row)) == k for row in indices.flatten(0, 1).tolist()), "a neighbour is named twice"
    # equal points tie to the bit: the lower index comes first and the higher ones are left out first
    tied = found.diff() == 0
    assert bool((indices.diff()[tied] > 0).all()), "a tie is not in the order of the indices"
    clear = truth[..., k - 1] == 0
    assert torch.equal(indices[clear], order[..., :k][clear]), "of equal points a higher index was kept"
