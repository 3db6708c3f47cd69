"""The studies that train in phases, each on data with a known answer, and each on a miniature."""

from dataclasses import replace

import pytest
import torch

from fastcluster_lm.config import apply_settings
from fastcluster_lm.data import BatchSampler
from fastcluster_lm.studies.corrections import pulling
from fastcluster_lm.studies.experiments import alignment, complex_alignment, identity_pretraining, unseen_tasks
from fastcluster_lm.studies.experiments.identity_pretraining import pretrain_and_finetune, read_curve
from fastcluster_lm.studies.phases import descend, first_reaching, fit, rooms_without_probe
from fastcluster_lm.studies.reading import trained_rooms
from fastcluster_lm.studies.relabelled import (
    asking,
    of_tasks,
    only,
    output_ids,
    relabel,
    where_answers_differ,
    with_identities,
    without,
)
from fastcluster_lm.studies.states import states_of
from fastcluster_lm.tasks import taskset_of
from tests.studies.planted import judged

SHORT = ("training.steps=16", "training.eval_every=4", "training.batch_size=32")


@pytest.fixture
def short(miniature):
    return apply_settings(miniature, SHORT)


def test_a_share_saved_is_found_and_equal_curves_save_nothing():
    slow = {step: min(1.0, step / 100) for step in range(0, 101, 5)}
    fast = {step: min(1.0, step / 50) for step in slow}
    assert identity_pretraining.saved(fast, slow) == (pytest.approx(0.5), pytest.approx(0.05))
    assert identity_pretraining.saved(slow, slow)[0] == identity_pretraining.saved(slow, slow)[1]
    # what never reaches the control's accuracy saves nothing, however soon it settles
    assert identity_pretraining.saved(dict.fromkeys(slow, 0.3), slow)[0] == 0.0
    assert first_reaching(fast, 2.0) is None
    planted = [identity_pretraining.saved({s: v * (1 - 0.01 * i) for s, v in fast.items()}, slow) for i in range(5)]
    assert judged(identity_pretraining.STUDY, planted).verdict == "supported"
    assert judged(identity_pretraining.STUDY, [(0.5 + 0.01 * i, 0.52) for i in range(5)]).verdict == "undecided"


def test_identities_take_the_answers_place_and_reassigned_ones_go_by_distribution(short):
    taskset = taskset_of(short.tasks, short.seed)
    rooms = rooms_without_probe(short, with_identities(taskset))
    train, outputs = rooms.trainer.train, output_ids(rooms)
    named = rooms.vocabulary.decode(asking("identity", train, outputs, taskset.n_outputs, 0).targets.tolist())
    assert named == [f"id{task}" for task in train.task.tolist()]
    moved = asking("shuffled", train, outputs, taskset.n_outputs, 0).targets
    assert not torch.equal(moved, outputs[taskset.n_outputs + train.task])
    for distribution in train.distribution.unique():
        assert len(moved[train.distribution == distribution].unique()) == 1


@pytest.mark.parametrize("kind", identity_pretraining.KINDS)
def test_identity_pretraining_measures_a_miniature(kind, short, tmp_path):
    pretrain_and_finetune(short, tmp_path, {"kind": kind})
    curves = {name: read_curve(tmp_path, name) for name in ("pretraining", "finetuning")}
    assert [max(curve) for curve in curves.values()] == [8, 8]
    # fine-tuning goes on from the weights of pre-training, but the answers are new unless they were pre-trained on
    assert (curves["finetuning"][0] == curves["pretraining"][8]) == (kind == "answers")


def test_unseen_tasks_shows_few_instructions_of_the_other_half_alone(short, tmp_path):
    taskset = taskset_of(short.tasks, short.seed)
    rooms = rooms_without_probe(short, taskset)
    new = of_tasks(rooms.trainer.train, range(2, 4))
    assert set(new.task.tolist()) == {2, 3}
    shown = unseen_tasks.first_instructions(new, short.data.n_train_instructions, 2)
    for distribution in new.distribution.unique():
        assert len(shown.instruction[shown.distribution == distribution].unique()) == 2
    cells = {}
    for kind in unseen_tasks.KINDS:
        cells[kind] = tmp_path / kind
        cells[kind].mkdir()
        unseen_tasks.pretrain_and_show_few(short, cells[kind], {"kind": kind})
    found = unseen_tasks.STUDY.measure(cells)
    assert 0 <= found.statistic <= 1 and 0 <= found.control <= 1
    assert {row["instructions"] for row in found.rows} == set(unseen_tasks.FEW)


def test_unseen_tasks_finds_a_planted_help_and_none_where_curves_are_equal():
    def curve(help: float, seed: int) -> float:
        return unseen_tasks.few_example_mean(
            {str(few): 0.3 + 0.05 * few + help + 0.004 * seed for few in unseen_tasks.FEW}
        )

    assert (
        judged(unseen_tasks.STUDY, [(curve(0.1, seed % 3), curve(0, seed)) for seed in range(5)]).verdict == "supported"
    )
    assert (
        judged(unseen_tasks.STUDY, [(curve(0, 4 - seed), curve(0, seed)) for seed in range(5)]).verdict == "undecided"
    )


def frontier(method: str, kept_at: dict[float, float]) -> list[dict]:
    steps = enumerate(kept_at.items())
    return [{"method": method, "learning_rate": 1e-3, "step": n, "success": s, "kept": k} for n, (s, k) in steps]


def test_alignment_counts_what_is_kept_at_equal_success():
    gentle = frontier("clusters", {0.0: 1.0, 0.6: 0.95, 0.95: 0.9})
    harsh = frontier("fine-tuning", {0.0: 1.0, 0.6: 0.8, 0.95: 0.5})
    never = frontier("replay", {0.0: 1.0, 0.4: 1.0})
    assert alignment.kept_at_success(gentle, "clusters") == pytest.approx((2 * 0.95 + 3 * 0.9) / 5)
    assert alignment.kept_at_success(harsh, "fine-tuning") == pytest.approx((2 * 0.8 + 3 * 0.5) / 5)
    assert alignment.kept_at_success(never, "replay") == 0.0
    # the better learning rate counts
    worse = [{**row, "learning_rate": 1e-4, "kept": 0.0} for row in gentle]
    assert alignment.kept_at_success(gentle + worse, "clusters") == alignment.kept_at_success(gentle, "clusters")
    assert judged(alignment.STUDY, [(0.9 + 0.01 * s, 0.6) for s in range(5)]).verdict == "supported"
    assert judged(alignment.STUDY, [(0.6 + 0.01 * (s - 2), 0.6) for s in range(5)]).verdict == "undecided"


@pytest.mark.parametrize("method", alignment.METHODS)
def test_every_method_of_alignment_moves_the_source_and_leaves_the_model_at_hand_alone(method, cell, monkeypatch):
    monkeypatch.setattr(alignment, "STEPS", 10)
    rooms = trained_rooms(cell)
    before = [weight.clone() for weight in rooms.trainer.model.parameters()]
    rows = alignment.aligned_rows(rooms, method, 3e-3)
    assert [row["step"] for row in rows] == [0, 5, 10]
    assert rows[-1] != rows[0]
    for one, other in zip(before, rooms.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_pulling_brings_source_states_to_the_goals_centroids(cell):
    rooms = trained_rooms(cell)
    model, train = rooms.trainer.model, rooms.trainer.train
    source = only(train, 0)
    goal = torch.ones_like(source.task)
    loss = pulling(rooms, model, source, goal, BatchSampler(len(source), 16, 0))
    sizes = {"n_layers": 3, "d_model": 16}

    def middle(instances):
        return states_of(rooms.trainer.evaluator, instances, **sizes)[1]

    # of input 0, in the layer that is pulled at
    center = middle(train.select(((train.task == 1) & (train.input == 0)).nonzero()[:, 0])).mean(0)
    at_input = source.select((source.input == 0).nonzero()[:, 0])
    before = (middle(at_input) - center).norm(dim=1).mean()
    descend(model, loss, rooms.config, steps=40, learning_rate=1e-2)
    assert (middle(at_input) - center).norm(dim=1).mean() < before / 2


def test_relabelled_instances_have_the_goals_answers(cell):
    rooms = trained_rooms(cell)
    source = only(rooms.trainer.val, 0)
    relabelled = relabel(rooms, source, torch.ones_like(source.task))
    table = rooms.taskset.tasks[1].table
    answers = rooms.vocabulary.decode(relabelled.targets.tolist())
    assert answers == [rooms.taskset.outputs[table[given]] for given in source.input.tolist()]
    differ = {given for given in range(rooms.taskset.n_inputs) if table[given] != rooms.taskset.tasks[0].table[given]}
    assert set(where_answers_differ(rooms, relabelled).input.tolist()) == differ
    assert 0 not in without(rooms.trainer.val, 0).task


def test_complex_alignment_measures_corrections_in_one_context(miniature, tmp_path, monkeypatch):
    monkeypatch.setattr(complex_alignment, "STEPS", 5)
    config = apply_settings(miniature, [*SHORT, "probe.every=0"])
    complex_alignment.train_with_contexts(config, tmp_path, {})
    rooms = trained_rooms(tmp_path)
    inside = complex_alignment.in_context(rooms, rooms.trainer.val)
    texts = rooms.vocabulary.decode(rooms.trainer.val.tokens[:, 0].tolist())
    assert inside.tolist() == [text == "9" for text in texts] and 0 < int(inside.sum()) < len(inside)
    found = complex_alignment.STUDY.measure({"contexts": tmp_path})
    assert {row["after"] for row in found.rows} == {0, 1, 2}
    assert {row["part"] for row in found.rows} == set(complex_alignment.PARTS)


def test_complex_alignment_averages_the_parts_at_the_end_and_names_interference():
    def rows(method: str, shares: dict[int, list[float]]) -> list[dict]:
        return [
            {"method": method, "after": after, "part": part, "share": share}
            for after, values in shares.items()
            for part, share in zip(complex_alignment.PARTS, values, strict=True)
        ]

    found = rows("clusters", {0: [0, 0, 1, 1], 1: [0.9, 0, 1, 1], 2: [0.7, 0.9, 1, 0.8]})
    assert complex_alignment.overall(found, "clusters") == pytest.approx(0.85)
    assert complex_alignment.interference(found, "clusters") == pytest.approx(0.2)
    assert judged(complex_alignment.STUDY, [(0.8 + 0.01 * s, 0.5) for s in range(5)]).verdict == "supported"
    assert judged(complex_alignment.STUDY, [(0.5 + 0.01 * (s - 2), 0.5) for s in range(5)]).verdict == "undecided"


def test_a_phase_goes_on_from_the_weights_it_is_given(short):
    rooms = rooms_without_probe(short, taskset_of(short.tasks, short.seed))
    trainer = rooms.trainer
    first = fit(trainer.model, trainer.train, trainer.val, short, steps=8)
    still = replace(short, training=replace(short.training, learning_rate=0.0))
    second = fit(trainer.model, trainer.train, trainer.val, still, steps=4)
    assert second.accuracy[0] == first.accuracy[8] == second.accuracy[4]
    assert (first.trainer.step, second.trainer.step) == (8, 4)
