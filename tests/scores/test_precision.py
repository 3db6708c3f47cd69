"""Either way of allowing TF32 or bfloat16 in torch leaves the scores in float32, and is itself left as it was."""

import pytest
import torch

from fastcluster_lm import kmeans, nearest_neighbors, score_clusters, tsne
from fastcluster_lm.scores.engines._isolation import left_alone
from fastcluster_lm.scores.precision import full_precision, precisions_kept

PLACES = [("generic", "all"), *((b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn"))]


def found(backend, op):
    return torch._C._get_fp32_precision_getter(backend, op)


def put(backend, op, precision):
    torch._C._set_fp32_precision_setter(backend, op, precision)


def older(read):
    try:
        return read()
    except RuntimeError:
        return "raises"


def everything_told():
    """Give all that torch tells of the precision of float32, also after each setting above others has moved."""
    told = [found(*place) for place in PLACES]
    told.append(older(torch.get_float32_matmul_precision))
    told.append(older(lambda: torch.backends.cuda.matmul.allow_tf32))
    told.append(older(lambda: torch.backends.cudnn.allow_tf32))
    for above in (("generic", "all"), ("cuda", "all"), ("mkldnn", "all")):
        for precision in ("ieee", "tf32"):
            put(*above, precision)
            told.append([found(*place) for place in PLACES])
    # what the older ways hold shows once the newer agree with it
    for precision in ("ieee", "tf32"):
        for place in PLACES:
            put(*place, precision)
        told.append(older(torch.get_float32_matmul_precision))
        told.append(older(lambda: torch.backends.cuda.matmul.allow_tf32))
        told.append(older(lambda: torch.backends.cudnn.allow_tf32))
    return told


def reset():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for place in PLACES:
        put(*place, "tf32" if place in (("cuda", "conv"), ("cuda", "rnn")) else "none")


def older_high():
    torch.set_float32_matmul_precision("high")


def older_medium():
    torch.set_float32_matmul_precision("medium")


def older_allow_tf32():
    torch.backends.cuda.matmul.allow_tf32 = True


def newer_everywhere():
    torch.backends.fp32_precision = "tf32"


def newer_everywhere_bf16():
    torch.backends.fp32_precision = "bf16"


def newer_cuda_matmul():
    torch.backends.cuda.matmul.fp32_precision = "tf32"


def newer_cuda():
    torch.backends.cudnn.fp32_precision = "tf32"


def newer_mkldnn_matmul():
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"


def newer_mkldnn():
    put("mkldnn", "all", "bf16")


def both_ways():
    torch.set_float32_matmul_precision("high")
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"
    torch.backends.cudnn.allow_tf32 = False


WAYS = [
    older_high,
    older_medium,
    older_allow_tf32,
    newer_everywhere,
    newer_everywhere_bf16,
    newer_cuda_matmul,
    newer_cuda,
    newer_mkldnn_matmul,
    newer_mkldnn,
    both_ways,
]


@pytest.fixture(autouse=True)
def settings_reset():
    reset()
    yield
    reset()


def all_verbs(X):
    order = torch.arange(X.shape[1])
    rows = score_clusters(X, order % 3, n_init=2, n_nulls=2)
    return [
        *nearest_neighbors(X, X, 4, exclude_self=True),
        *kmeans(X, 3, n_init=2),
        *tsne(X, n_iter=20, perplexity=5.0),
        torch.tensor([row["ari"] for row in rows]),
    ]


@pytest.mark.parametrize("native", ["1", "0"])
@pytest.mark.parametrize("way", WAYS)
def test_scores_are_of_float32_and_every_setting_stays(monkeypatch, way, native):
    monkeypatch.setenv("FCLM_NATIVE", native)
    X = torch.randn(2, 120, 300, generator=torch.Generator().manual_seed(0))
    expected = all_verbs(X)
    way()
    told = everything_told()
    reset()
    way()
    assert all(torch.equal(a, b) for a, b in zip(all_verbs(X), expected, strict=True))
    assert everything_told() == told


@pytest.mark.parametrize("way", WAYS)
def test_both_ways_say_the_highest_within(way):
    way()
    with full_precision():
        assert {found("cuda", "matmul"), found("mkldnn", "matmul")} <= {"ieee", "none"}
        assert way is not older_high or torch.get_float32_matmul_precision() == "highest"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("within", WAYS)
def test_a_library_that_sets_them_leaves_them_alone(way, within):
    way()
    told = everything_told()
    reset()
    way()
    with pytest.raises(KeyError), left_alone(torch.device("cpu")), precisions_kept():
        within()
        raise KeyError
    assert everything_told() == told


def test_a_lower_precision_would_be_seen():
    X = torch.randn(120, 300, generator=torch.Generator().manual_seed(0))
    exact = X @ X.T
    newer_mkldnn_matmul()
    lowered = X @ X.T
    if torch.equal(exact, lowered):
        pytest.skip("this processor multiplies in float32 whatever is allowed")
    with full_precision():
        assert torch.equal(exact, X @ X.T)
