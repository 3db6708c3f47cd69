"""Step probes and the batch source: what they score, whose states, how old, and what they refuse."""

from dataclasses import replace
from functools import partial

import pytest
import torch

from fastcluster_lm.config import config_from_dict
from fastcluster_lm.engine import Rooms, start_run
from fastcluster_lm.errors import ConfigError
from fastcluster_lm.probe import Cadence
from fastcluster_lm.probe.warm_map import WarmMap
from fastcluster_lm.scores.engines import choose_engine
from fastcluster_lm.scores.engines.params import NeighborsParams
from fastcluster_lm.tasks import taskset_of
from tests.laws.conftest import SMALL, fingerprint


def drawn(keeper, X, ids, *, key_frame):
    """Draw a map and settle it, as a probe does once its columns are on the host."""
    points, columns, _, warm, _ = keeper.draw(X, ids, key_frame)
    keeper.settle(columns, warm=warm)
    return points, columns, warm


def _noting(asked, verb, *arguments):
    asked.append(arguments)
    return verb(*arguments)


def every_step(source: str, **scores):
    probe = {**SMALL["probe"], "every": 1, "full_every": 6, "source": source}
    # one batch is a sixth of the ring, so that it is full after a few steps
    return config_from_dict({**SMALL, "probe": probe, "scores": {**SMALL["scores"], **scores}})


def test_a_cadence_below_ten_has_step_probes_between_full_ones():
    cadence = Cadence(4, steps=30, key_frame_every=2, full_every=10)
    assert cadence.period == 12
    assert [step for step in range(31) if cadence.is_due(step)] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert [step for step in range(31) if cadence.is_full(step)] == [0, 12, 24, 30]
    assert [step for step in range(31) if cadence.is_key_frame(step)] == [0, 24, 30]
    assert not any(Cadence(4, steps=None, key_frame_every=2, full_every=10).is_full(step) for step in (4, 8, 28, 30))
    # all are full by default, and in a run from every 10 steps on
    assert Cadence(4, steps=30, key_frame_every=2).period == 4
    for every, period in ((3, 51), (9, 54), (10, 10), (25, 25)):
        config = config_from_dict({**SMALL, "probe": {**SMALL["probe"], "every": every, "full_every": 50}})
        assert Rooms(config, taskset_of(config.tasks, 0)).cadence.period == period


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_rows_say_their_tier_source_and_age(tmp_path, source):
    folder = start_run(every_step(source), tmp_path / "run").folder
    rows = folder.scores()
    tiers = {step: {row["tier"] for row in rows if row["step"] == step} for step in range(13)}
    assert all(tiers[step] == {"full"} for step in (0, 6, 12))
    by_step = [step for step, found in tiers.items() if found == {"step"}]
    # the ring of 96 is full after six batches of 16
    assert by_step == ([1, 2, 3, 4, 5, 7, 8, 9, 10, 11] if source == "fresh" else [7, 8, 9, 10, 11])
    for row in rows:
        if row["tier"] == "step":
            assert (row["split"], row["group"], row["labels"], row["warm"]) == ("train", "all", "task", True)
            assert row["n_points"] == 48 and row["null_ari"] is None and row["ari"] is not None
        from_ring = source == "batch" and row["split"] == "train" and row["step"] >= 6
        assert row["source"] == ("batch" if from_ring else "fresh")
        assert (row["age_steps"] > 0) == (row["source"] == "batch")
        assert row["split"] == "train" or row["source"] == "fresh"
    assert {row["space"] for row in rows if row["tier"] == "step"} == {"hidden", "map"}
    assert sorted(folder.map_steps()) == [0, 6, 12]


def test_the_ring_holds_the_states_that_the_training_forward_gave():
    run = Rooms(every_step("batch"), taskset_of(every_step("batch").tasks, 0))
    seen = {}
    for step in range(1, 9):
        result = run.trainer.advance()
        run.probe.observe(result.batch, result.states, step)
        seen.update({int(i): result.states[row] for row, i in enumerate(result.batch)})
    ring = run.probe.ring
    assert ring.full
    for slot, instance in enumerate(ring.instances.tolist()):
        assert torch.equal(ring.states[:, slot], seen[instance])
    points = run.probe.ring.capture(shown=False)
    train = run.trainer.train
    assert (points.labels["task"] == train.task[ring.instances].numpy()).all()
    assert (points.instructions == train.instruction[ring.instances].numpy()).all()
    # the newest 96 distinct instances of 8 batches of 16, of weights before their step
    assert ring.seen_at.min() >= 1 and ring.seen_at.max() == 7
    assert ring.mean_age(8) == pytest.approx(float((8 - ring.seen_at).double().mean()))


def test_a_new_point_starts_at_the_mean_of_its_three_nearest_retained_points(monkeypatch):
    config = config_from_dict(SMALL).scores
    engine = choose_engine("fused", "cpu")
    keeper = WarmMap(replace(config, n_iter=30), engine, 0)
    X = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(0))
    ids = torch.arange(40)
    points, columns, warm = drawn(keeper, X, ids, key_frame=False)
    assert not warm and "neighbor_overlap" not in columns
    other, moved = X.clone(), ids.clone()
    other[:, [3, 17]] += 1.0
    moved[[3, 17]] = torch.tensor([100, 101])
    retained = [i for i in range(40) if i not in (3, 17)]
    # the nearest retained points may be among the neighbours that are known, or must be sought
    for n_known in (20, 1):
        known, searches = engine.neighbors(other, other, NeighborsParams(n_known, ids, ids)), []
        with monkeypatch.context() as patch:
            patch.setattr(engine, "neighbors", partial(_noting, searches, engine.neighbors))
            start = keeper._start(other, known, moved)
        assert len(searches) == (n_known == 1)
        for layer in range(2):
            for new in (3, 17):
                away = (other[layer, retained] - other[layer, new]).square().sum(1)
                nearest = torch.tensor(retained)[away.argsort()[:3]]
                torch.testing.assert_close(start[layer, new], points[layer, nearest].mean(0))
        assert torch.equal(start[:, retained], points[:, retained])
    # with most points new there is nothing to go on from
    assert keeper._start(other, engine.neighbors(other, other, NeighborsParams(3, ids, ids)), ids + 500) is None
    _, columns, warm = drawn(keeper, other, moved, key_frame=False)
    assert warm and "neighbor_overlap" not in columns
    _, columns, warm = drawn(keeper, other, moved, key_frame=False)
    assert warm and columns["neighbor_overlap"].eq(1).all()


def test_a_map_that_loses_its_neighbours_starts_cold_at_the_next_probe():
    config = replace(config_from_dict(SMALL).scores, n_iter=200, warm_iter=1, key_frame_margin=0.05)
    keeper = WarmMap(config, choose_engine("fused", "cpu"), 0)
    draw = torch.Generator().manual_seed(0)
    X, ids = torch.randn(1, 80, 4, generator=draw), torch.arange(80)
    drawn(keeper, X, ids, key_frame=True)
    assert drawn(keeper, X, ids, key_frame=False)[2]
    assert not keeper._restart
    # other points under the same names: one step of the old map cannot follow
    other = torch.randn(1, 80, 4, generator=draw)
    assert drawn(keeper, other, ids, key_frame=False)[2]
    assert keeper._restart
    assert not drawn(keeper, other, ids, key_frame=False)[2]
    assert not keeper._restart


def test_maps_of_layers_that_changed_start_drawn_together(monkeypatch):
    engine, starts = choose_engine("fused", "cpu"), []
    draw_maps = engine.tsne

    def tsne(X, params):
        starts.append(params.init)
        return draw_maps(X, params)

    monkeypatch.setattr(engine, "tsne", tsne)
    keeper = WarmMap(replace(config_from_dict(SMALL).scores, key_frame_margin=1.0), engine, 0)
    draw = torch.Generator().manual_seed(0)
    X, ids = torch.randn(2, 60, 4, generator=draw), torch.arange(60)
    drawn(keeper, X, ids, key_frame=True)
    # the second layer's neighbours are others, the first one's are what they were
    moved = torch.stack([X[0], torch.randn(60, 4, generator=draw)])
    last = keeper.points
    drawn(keeper, moved, ids, key_frame=False)
    assert starts[0] is None
    assert torch.equal(starts[1][0], last[0])
    torch.testing.assert_close(starts[1][1], last[1] * 0.1)
    # of other instances nothing is known
    last = keeper.points
    drawn(keeper, moved, torch.cat([ids[:50], ids[50:] + 100]), key_frame=False)
    torch.testing.assert_close(starts[2][:, :50], last[:, :50] * 0.1)


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_training_is_left_alone_by_step_probes_of_either_source(tmp_path, source):
    off = replace(every_step(source), probe=replace(every_step(source).probe, every=0))
    one = start_run(off, tmp_path / "off").folder
    other = start_run(every_step(source), tmp_path / "on").folder
    assert fingerprint(one) == fingerprint(other)


@pytest.mark.parametrize("source", ["fresh", "batch"])
def test_a_stopped_run_goes_on_with_the_same_rows(tmp_path, source):
    from fastcluster_lm.engine import Hooks, resume_run

    whole = start_run(every_step(source), tmp_path / "whole").folder
    steps = []
    hooks = Hooks(on_step=lambda row, scores: steps.append(row["step"]), should_stop=lambda: 9 in steps)
    assert not start_run(every_step(source), tmp_path / "stopped", hooks).finished
    resumed = resume_run(tmp_path / "stopped")
    assert resumed.resumed_from == 9
    assert (whole.path / "scores.jsonl").read_bytes() == (resumed.folder.path / "scores.jsonl").read_bytes()
    assert fingerprint(whole) == fingerprint(resumed.folder)


def test_no_map_in_step_probes_where_none_is_asked_for(tmp_path):
    rows = start_run(every_step("fresh", step_iter=0), tmp_path / "run").folder.scores()
    assert {row["space"] for row in rows if row["tier"] == "step"} == {"hidden"}


def test_states_under_dropout_are_refused():
    with pytest.raises(ConfigError, match="probe.source: expected fresh with model.dropout=0.1"):
        config_from_dict({**SMALL, "model": {**SMALL["model"], "dropout": 0.1}, "probe": {"source": "batch"}})


def test_a_ring_that_lacks_a_task_is_scored_with_fewer_clusters(tmp_path):
    run = Rooms(every_step("batch"), taskset_of(every_step("batch").tasks, 0))
    run.probe.score(0)
    train = run.trainer.train
    draw = torch.Generator().manual_seed(0)
    few = (train.task < 3).nonzero()[:, 0]
    few = few[torch.randperm(len(few), generator=draw)[:96]]
    run.probe.observe(few, torch.randn(96, 3, 16, generator=draw), 1)
    rows = run.probe.score(1).rows
    assert rows and {row["n_clusters"] for row in rows} == {3}
    run.probe.observe(train.task.argsort(descending=True)[:96], torch.randn(96, 3, 16), 2)
    assert run.probe.score(2).rows


def test_overlap_compares_neighbours_of_the_same_instances_alone():
    keeper = WarmMap(config_from_dict(SMALL).scores, choose_engine("fused", "cpu"), 0)
    X, ids = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(0)), torch.arange(40)
    drawn(keeper, X, ids, key_frame=True)
    # a step probe moves other instances into some slots; the neighbours are still those of the full probe's
    moved = ids.clone()
    moved[:5] += 100
    assert keeper.move(X[:, :20] * 1.1, moved[:20]) is not None
    columns = drawn(keeper, X, moved, key_frame=False)[1]
    assert "neighbor_overlap" not in columns
    assert "neighbor_overlap" in drawn(keeper, X, moved, key_frame=False)[1]


def test_step_probes_cluster_from_the_last_centroids_alone(monkeypatch):
    config = every_step("fresh")
    for first, expected in ((0, {(0, False)}), (None, {(1, True)})):
        probe = Rooms(config, taskset_of(config.tasks, config.seed)).probe
        if first is not None:
            probe.score(first)
        asked = []
        monkeypatch.setattr(
            probe.scorer.first.engine, "kmeans_each", partial(_noting, asked, probe.scorer.first.engine.kmeans_each)
        )
        probe.score(1)
        assert {(one.n_init, one.init is None) for _, params in asked for one in params} == expected
