"""Either way of allowing TF32 or bfloat16 in torch leaves the scores in float32, and is itself left as it was."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastcluster_lm import kmeans, nearest_neighbors, score_clusters, tsne
from fastcluster_lm.scores.engines._isolation import left_alone
from fastcluster_lm.scores.precision import full_precision, precisions_kept

PLACES = [("generic", "all"), *((b, op) for b in ("cuda", "mkldnn") for op in ("all", "matmul", "conv", "rnn"))]

MATMULS = [("cuda", "matmul"), ("mkldnn", "matmul")]


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


def nothing():
    pass


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
    nothing,
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


def all_verbs():
    X = torch.randn(2, 120, 300, generator=torch.Generator().manual_seed(0))
    rows = score_clusters(X, torch.arange(120) % 3, n_init=2, n_nulls=2, perplexity=5.0)
    answers = [
        *nearest_neighbors(X, X, 4, exclude_self=True),
        *kmeans(X, 3, n_init=2),
        *tsne(X, n_iter=20, perplexity=5.0),
        torch.tensor([row["ari"] for row in rows]),
    ]
    return [hashlib.sha256(answer.numpy().tobytes()).hexdigest() for answer in answers]


def within_full_precision(way):
    way()
    with full_precision():
        told = [found(*place) for place in MATMULS]
    return told, everything_told()


def left_to_a_library(way, within):
    way()
    try:
        with left_alone(torch.device("cpu")), precisions_kept():
            within()
            raise KeyError
    except KeyError:
        return everything_told()


def verbs_after(way, native):
    way()
    os.environ["FCLM_NATIVE"] = native
    return all_verbs(), everything_told()


def told_after(way):
    way()
    return everything_told()


def apart(function, *arguments):
    """Call a function in a process of its own, as it was before any setting was touched: some cannot be set again."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, json.dumps(function(*arguments)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    return json.loads(text) if text else f"{function.__name__} raised"


def main():
    """Print, as JSON, what every way comes to."""
    print(json.dumps({
        "told": {way.__name__: apart(told_after, way) for way in WAYS},
        "within": {way.__name__: apart(within_full_precision, way) for way in WAYS},
        "verbs": {native: {way.__name__: apart(verbs_after, way, native) for way in WAYS} for native in "10"},
        "library": {a.__name__: {b.__name__: apart(left_to_a_library, a, b) for b in WAYS} for a in WAYS},
    }))  # fmt: skip


@pytest.fixture(scope="module")
def seen():
    done = subprocess.run(
        [sys.executable, "-m", "tests.scores.test_precision"],
        cwd=Path(__file__).parents[2], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


NAMES = [way.__name__ for way in WAYS]


@pytest.mark.parametrize("native", "10")
@pytest.mark.parametrize("way", NAMES)
def test_scores_are_of_float32_and_every_setting_stays(seen, way, native):
    answers, told = seen["verbs"][native][way]
    assert answers == seen["verbs"][native]["nothing"][0]
    assert told == seen["told"][way]


@pytest.mark.parametrize("way", NAMES)
def test_matmuls_are_of_float32_within_and_every_setting_stays(seen, way):
    told, after = seen["within"][way]
    assert set(told) <= {"ieee", "none"}
    assert after == seen["told"][way]


@pytest.mark.parametrize("way", NAMES)
@pytest.mark.parametrize("within", NAMES)
def test_a_library_that_sets_them_leaves_them_alone(seen, way, within):
    told, expected = seen["library"][way][within], seen["told"][way]
    # what counts now; what would count after other settings is the same too, but for convolutions that were overwritten
    now = len(PLACES) + 3
    # what torch would not tell, since its two ways disagreed, could not be kept
    assert all(one == other or other == "raises" for one, other in zip(told[:now], expected[:now], strict=True))
    rows = zip(told[now:], expected[now:], strict=True)
    assert all(_of_matmuls(one) == _of_matmuls(other) for one, other in rows)
    if within in ("nothing", "older_high", "older_medium", "older_allow_tf32", "newer_cuda_matmul"):
        assert told == expected


def _of_matmuls(told):
    return [told[PLACES.index(place)] for place in MATMULS] if isinstance(told, list) else None


def test_the_ways_differ(seen):
    # so that a setting that is not put back is seen
    told = [json.dumps(told) for told in seen["told"].values()]
    assert len(set(told)) == len(told)


def test_a_lower_precision_would_be_seen():
    X = torch.randn(120, 300, generator=torch.Generator().manual_seed(0))
    exact = X @ X.T
    try:
        newer_mkldnn_matmul()
        lowered = X @ X.T
        if torch.equal(exact, lowered):
            pytest.skip("this processor multiplies in float32 whatever is allowed")
        with full_precision():
            assert torch.equal(exact, X @ X.T)
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = "none"


if __name__ == "__main__":
    main()
