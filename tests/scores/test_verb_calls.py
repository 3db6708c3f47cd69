"""The campaign's calls of the verbs: a few of them hold, and faults planted in a verb are seen."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

import fastcluster_lm
from fastcluster_lm.kernels import native
from tests.campaign import verbs
from tests.campaign.verb_calls import VERBS, Call, draw_call


def test_a_few_calls_hold(tmp_path):
    outcome = verbs.run(60, seed=1, folder=tmp_path)
    assert outcome.met, outcome.broken


def test_a_call_is_drawn_alike_from_its_number():
    assert [draw_call(3, number).told() for number in range(20)] == [
        draw_call(3, number).told() for number in range(20)
    ]
    assert {draw_call(0, number).verb for number in range(40)} == set(VERBS)


@pytest.mark.parametrize("in_torch", [True, False])
def test_a_call_runs_the_code_that_it_names(in_torch):
    loaded, seen = native.compiled(), []

    def verb(**args):
        seen.append(native.compiled())
        return fastcluster_lm.kmeans(**args)

    assert verbs.try_call(replace(SOUND["kmeans"], native=not in_torch), verb) == ("", True)
    assert seen == [loaded and not in_torch] and native.compiled() is loaded


def sound_call(verb, **args):
    X = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    points = {"queries": X, "bank": X.copy()} if verb == "nearest_neighbors" else {"X": X}
    exact = {name: value.astype(np.float64) for name, value in points.items()}
    return Call(verb, points | args, sound=True, native=True, exact=exact, tame=True)


SOUND = {
    "nearest_neighbors": sound_call("nearest_neighbors", n_neighbors=4, exclude_self=False),
    "kmeans": sound_call("kmeans", n_clusters=3),
    "tsne": sound_call("tsne", perplexity=5.0, n_iter=20),
    "score_clusters": sound_call("score_clusters", labels_true=np.arange(30) % 3, spaces=("hidden",), n_neighbors=5),
}


def with_part(answer, name, change):
    part = getattr(answer, name).copy() if getattr(answer, name).ndim else getattr(answer, name) * 1
    return answer._replace(**{name: change(part)})


def put(at, value):
    def change(part):
        part[at] = value
        return part

    return change


FAULTS = {
    "an index out of range": ("nearest_neighbors", lambda a: with_part(a, "indices", put((2, 1), 30))),
    "another neighbour": ("nearest_neighbors", lambda a: with_part(a, "indices", lambda i: (i + 1) % 30)),
    "a wrong distance": ("nearest_neighbors", lambda a: with_part(a, "distances", lambda d: d * np.float32(1.001))),
    "a wrong kind": ("nearest_neighbors", lambda a: with_part(a, "indices", lambda i: i.astype(np.int32))),
    "NaN": ("nearest_neighbors", lambda a: with_part(a, "distances", put((3, 3), np.nan))),
    "a wrong label": ("kmeans", lambda a: with_part(a, "labels", lambda i: (i + 1) % 3)),
    "a wrong inertia": ("kmeans", lambda a: with_part(a, "inertia", lambda x: x * 1.01)),
    "a tensor for an array": ("kmeans", lambda a: with_part(a, "labels", torch.from_numpy)),
    "a wrong KL": ("tsne", lambda a: with_part(a, "kl_divergence", lambda x: x + 0.1)),
    "a map of other points": ("tsne", lambda a: with_part(a, "points", lambda p: p[::-1].copy())),
    "a row too few": ("score_clusters", lambda rows: rows[:-1]),
    "a row that is no JSON": ("score_clusters", lambda rows: [row | {"n_clusters": np.int64(3)} for row in rows]),
    "a wrong share": ("score_clusters", lambda rows: [row | {"knn_share": row["knn_share"] / 2} for row in rows]),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_right_answer_passes(verb):
    assert verbs.try_call(SOUND[verb], getattr(fastcluster_lm, verb)) == ("", True)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_answer_is_seen(fault):
    verb, change = FAULTS[fault]
    found, answered = verbs.try_call(SOUND[verb], lambda **args: change(getattr(fastcluster_lm, verb)(**args)))
    assert found and not answered


def raising(error):
    def verb(X, n_clusters):
        raise error

    return verb


def moving_a_generator(**args):
    random.random()
    return fastcluster_lm.kmeans(**args)


def changing_its_points(**args):
    found = fastcluster_lm.kmeans(**args)
    args["X"] += 1
    return found


@pytest.mark.parametrize(
    ("verb", "fault"),
    [
        (raising(RuntimeError("of torch")), "RuntimeError"),
        (raising(fastcluster_lm.FclmError("something is wrong")), "no argument is named"),
        (raising(fastcluster_lm.FclmError("X is wrong")), "nothing is wrong with it"),
        (moving_a_generator, "generator"),
        (changing_its_points, "X was changed"),
    ],
)
def test_a_verb_that_misbehaves_is_seen(verb, fault):
    call = sound_call("kmeans", n_clusters=3)
    assert fault in verbs.try_call(call, verb)[0]
