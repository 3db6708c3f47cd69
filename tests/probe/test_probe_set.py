"""The probe set is balanced and fixed, and the cadence never forgets the first and the last step."""

import pytest
import torch

from fastcluster_lm.errors import ConfigError
from fastcluster_lm.probe import Cadence, choose_probe_set


def test_each_distribution_and_input_gets_the_same_number(splits):
    chosen = choose_probe_set(splits[0], n_points=40, map_points=20, seed=0, split="train")
    cells = chosen.instances.distribution * 3 + chosen.instances.input
    assert cells.bincount().tolist() == [2] * 18
    assert cells[chosen.on_map].bincount().tolist() == [1] * 18


def test_no_instance_is_chosen_twice_and_a_seed_repeats_the_choice(splits):
    once, again, other = (
        choose_probe_set(splits[0], n_points=72, map_points=18, seed=seed, split="train") for seed in (0, 0, 1)
    )
    rows = {(int(a), int(b)) for a, b in zip(once.instances.instruction, once.instances.input, strict=True)}
    assert len(rows) == 72
    assert torch.equal(once.instances.tokens, again.instances.tokens)
    assert not torch.equal(once.instances.tokens, other.instances.tokens)


def test_every_kind_of_label_is_its_own_and_a_task_and_an_input_make_one_label(splits):
    chosen = choose_probe_set(splits[0], n_points=72, map_points=18, seed=0, split="train")
    labels = chosen.labels(3)
    for kind in ("task", "distribution", "input", "output"):
        assert torch.equal(labels[kind], getattr(chosen.instances, kind)), kind
    assert torch.equal(labels["task_input"] // 3, labels["task"])
    assert torch.equal(labels["task_input"] % 3, labels["input"])


def test_too_few_instances_or_map_points_are_refused_with_the_number_there_is(splits):
    with pytest.raises(ConfigError, match="expected at most 54, all val instances"):
        choose_probe_set(splits[1], n_points=72, map_points=18, seed=0, split="val")
    with pytest.raises(ConfigError, match=r"probe.map_points: expected at least 18.*got 17"):
        choose_probe_set(splits[1], n_points=54, map_points=17, seed=0, split="val")


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
