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


def path(method: str, kept_at: dict[float, float], source: int = 0) -> list[dict]:
    """Make the rows of one pair: success and what is kept, in the order of the method's way."""
    fixed = {"method": method, "source": source, "target": source + 1}
    return [{**fixed, "success": success, "kept": kept} for success, kept in kept_at.items()]


def test_alignment_counts_what_is_kept_at_equal_success():
    gentle = path("closed form", {0.0: 1.0, 0.6: 0.95, 0.95: 0.9})
    harsh = path("fine-tuning", {0.0: 1.0, 0.6: 0.8, 0.95: 0.5})
    never = path("replay", {0.0: 1.0, 0.4: 1.0})
    rows = gentle + harsh + never
    assert alignment.kept_at_success(rows, "closed form") == pytest.approx((2 * 0.95 + 3 * 0.9) / 5)
    assert alignment.kept_at_success(rows, "fine-tuning") == pytest.approx((2 * 0.8 + 3 * 0.5) / 5)
    assert alignment.kept_at_success(rows, "replay") == 0.0
    assert alignment.kept_at_success(rows, "closed form", (0.6,)) == 0.95
    # where success comes back after a fall, the first time counts, and pairs count alike
    assert alignment.kept_at_success(path("gate", {0.7: 0.9, 0.3: 0.8, 0.75: 0.1}), "gate", (0.7,)) == 0.9
    two = gentle + path("closed form", {0.95: 0.5}, source=2)
    assert alignment.kept_at_success(two, "closed form", (0.5,)) == pytest.approx((0.95 + 0.5) / 2)


def test_alignment_finds_a_planted_edge_and_none_where_there_is_none():
    def value(method: str, edge: float, seed: int) -> float | None:
        pairs = [path(method, {0.55: 0.95 - edge, 0.92: 0.8 - edge + 0.01 * seed}, source) for source in (0, 2)]
        return alignment.kept_at_success([row for pair in pairs for row in pair], method)

    edged = [(value("closed form", 0.0, seed), value("fine-tuning", 0.1, seed % 3)) for seed in range(5)]
    alike = [(value("closed form", 0.0, 4 - seed), value("fine-tuning", 0.0, seed)) for seed in range(5)]
    assert judged(alignment.STUDY, edged).verdict == "supported"
    assert judged(alignment.STUDY, [(control, one) for one, control in edged]).verdict == "not supported"
    assert judged(alignment.STUDY, alike).verdict == "undecided"


@pytest.mark.parametrize("method", alignment.METHODS)
def test_every_method_of_alignment_moves_the_source_and_leaves_the_model_at_hand_alone(method, cell, monkeypatch):
    monkeypatch.setattr(alignment, "LOOK_LATER", 5)
    rooms = trained_rooms(cell)
    before = [weight.clone() for weight in rooms.trainer.model.parameters()]
    setting = replace(alignment.SETTINGS[method], steps=10, rate=3e-3)
    rows = alignment.aligned_rows(rooms, method, (0, 1), setting=setting)
    by_steps = method not in alignment.DIALS
    assert [row["at"] for row in rows] == ([0, 5, 10] if by_steps else [*alignment.DIALS[method]])
    # it ends at the last step, or where the dial is set
    assert [row["at"] for row in rows if row["end"]] == [10 if by_steps else setting.dial]
    assert max(row["success"] for row in rows) > min(row["success"] for row in rows)
    for one, other in zip(before, rooms.trainer.model.parameters(), strict=True):
        assert torch.equal(one, other) and other.requires_grad


def test_an_edit_holds_others_more_where_they_weigh_more_and_a_gate_of_no_strength_changes_nothing(cell, monkeypatch):
    rooms = trained_rooms(cell)
    rows = alignment.aligned_rows(rooms, "closed form", (0, 1))
    # of a model that has learnt little, other answers may change for the better, too
    assert rows[0]["forgotten"] == 0 != rows[-1]["forgotten"] and rows[0]["success"] < rows[-1]["success"]
    monkeypatch.setitem(alignment.DIALS, "gate", (0.0, 1.0))
    off, on = alignment.aligned_rows(rooms, "gate", (0, 1))
    assert off["forgotten"] == 0 and on["success"] > off["success"]


def test_lower_layers_alone_learn_and_nothing_else_does(cell, monkeypatch):
    rooms = trained_rooms(cell)
    seen = []
    monkeypatch.setattr(alignment, "descend", lambda model, loss, config, **_: seen.append((model, loss())))
    alignment.aligned_rows(rooms, "lower layers alone", (0, 1))
    (model, loss), names = seen[0], set()
    loss.backward()
    names = {name.rsplit(".", 2)[0] for name, weight in model.named_parameters() if weight.grad is not None}
    assert names == {"blocks.0"}


def test_fewer_instances_are_the_sources_own_and_data_is_counted_to_success(cell, monkeypatch):
    rooms = trained_rooms(cell)
    case, full = alignment.case_of(rooms, (0, 1), 4), alignment.case_of(rooms, (0, 1))
    assert len(case.source) == len(case.relabelled) == 4 and set(case.source.task.tolist()) == {0}
    assert len(case.old) == len(full.old) and 0 not in full.old.task and 0 not in full.kept.task
    # planted: 8 instances suffice for success, 32 for success with others kept
    monkeypatch.setattr(alignment, "FEW", (4, 8, 16, 32, 64))
    paths = {4: (0.8, 1.0), 8: (0.95, 0.4), 16: (0.95, 0.7), 32: (0.95, 0.95)}
    monkeypatch.setattr(alignment, "aligned_rows", lambda *given: path("pull", dict([paths[given[-1]]])))
    found = alignment.data_needed(rooms, "pull", (0, 1), [])
    assert found == {"success": 8.0, "success with others kept": 32.0}
    monkeypatch.setattr(alignment, "aligned_rows", lambda *given: path("pull", {0.5: 1.0}))
    assert set(alignment.data_needed(rooms, "pull", (0, 1), path("pull", {0.8: 1.0})).values()) == {None}
    n_source = len(only(rooms.trainer.train, 0))
    assert set(alignment.data_needed(rooms, "pull", (0, 1), path("pull", {0.9: 0.9})).values()) == {n_source}


def test_alignment_measures_a_miniature(cell, monkeypatch):
    monkeypatch.setattr(alignment, "PAIRS", ((0, 1), (2, 3)))
    monkeypatch.setattr(alignment, "FEW", (4,))
    short = {method: replace(own, steps=4) for method, own in alignment.SETTINGS.items()}
    monkeypatch.setattr(alignment, "SETTINGS", short)
    found = alignment.STUDY.measure({"base": cell})
    rows = [row for row in found.rows if row["part"] == "path"]
    assert found.statistic == alignment.kept_at_success(rows, "closed form")
    assert found.control == alignment.kept_at_success(rows, "fine-tuning")
    assert {(row["source"], row["target"]) for row in rows} == {(0, 1), (2, 3)}
    assert {(row["method"], row["level"]) for row in found.rows if row["part"] == "levels"} == {
        (method, level) for method in alignment.METHODS for level in alignment.LEVELS
    }
    assert found.beside["kept less replay's, closed form"] == found.statistic - found.beside["kept, replay"]


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
