"""The probed instances are balanced and fixed, and the cadence never forgets the first and the last step."""

import pytest
import torch

from fastcluster_lm.errors import ConfigError
from fastcluster_lm.probe import Cadence, choose_instances
from fastcluster_lm.probe.points import label_kinds, points_of
from fastcluster_lm.store import FIRST_VAL_ID


def test_each_distribution_and_input_gets_the_same_number(splits):
    index, on_map = choose_instances(splits[0], n_points=40, map_points=20, seed=0, split="train")
    cells = splits[0].distribution[index] * 3 + splits[0].input[index]
    assert cells.bincount().tolist() == [2] * 18
    assert cells[on_map].bincount().tolist() == [1] * 18


def test_no_instance_is_chosen_twice_and_a_seed_repeats_the_choice(splits):
    once, again, other = (
        choose_instances(splits[0], n_points=72, map_points=18, seed=seed, split="train")[0] for seed in (0, 0, 1)
    )
    assert len(set(once.tolist())) == 72
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_every_kind_of_label_is_its_own_and_a_task_and_an_input_make_one_label(splits):
    labels = label_kinds(splits[0], 3)
    for kind in ("task", "distribution", "input", "output"):
        assert (labels[kind] == getattr(splits[0], kind).numpy()).all(), kind
    assert (labels["task_input"] // 3 == labels["task"]).all()
    assert (labels["task_input"] % 3 == labels["input"]).all()


def test_points_are_numbered_over_both_splits_and_know_which_are_on_the_map(splits):
    index, on_map = torch.tensor([5, 2, 9]), torch.tensor([0, 2])
    for split, first in (("train", 0), ("val", FIRST_VAL_ID)):
        points = points_of(splits[0].select(index), split, 3, index, on_map)
        assert points.name == split and len(points) == 3 and points.ids.tolist() == [first + 5, first + 2, first + 9]
        shown = points.shown()
        assert shown.ids.tolist() == [first + 5, first + 9] and shown.on_map.tolist() == [0, 1]
        assert (shown.labels["task"] == splits[0].task[[5, 9]].numpy()).all()
        assert (shown.instructions == splits[0].instruction[[5, 9]].numpy()).all()


def test_too_few_instances_or_map_points_are_refused_with_the_number_there_is(splits):
    with pytest.raises(ConfigError, match="expected at most 54, all val instances"):
        choose_instances(splits[1], n_points=72, map_points=18, seed=0, split="val")
    with pytest.raises(ConfigError, match=r"probe.map_points: expected at least 18.*got 17"):
        choose_instances(splits[1], n_points=54, map_points=17, seed=0, split="val")


@pytest.mark.parametrize("every", [1, 7, 50, 1000])
def test_the_first_and_the_last_step_are_always_probed(every):
    cadence = Cadence(every, steps=120, key_frame_every=3)
    due = [step for step in range(121) if cadence.is_due(step)]
    assert due == sorted({*range(0, 121, every), 120})
    assert cadence.count() == len(due)
    assert cadence.is_key_frame(0) and cadence.is_key_frame(120)


def test_zero_turns_the_probe_off():
    cadence = Cadence(0, steps=10, key_frame_every=3)
    assert not any(cadence.is_due(step) for step in range(11))
    assert cadence.count() == 0


def test_key_frames_come_on_their_cadence():
    cadence = Cadence(10, steps=100, key_frame_every=3)
    assert [step for step in range(0, 101, 10) if cadence.is_key_frame(step)] == [0, 30, 60, 90, 100]


def test_without_a_cadence_only_the_first_and_the_last_map_are_cold():
    cadence = Cadence(10, steps=100, key_frame_every=0)
    assert [step for step in range(0, 101, 10) if cadence.is_key_frame(step)] == [0, 100]
