"""Instances, splits and batches: nothing shared, nothing lost, the same again from a saved state."""

import pytest
import torch

from fastcluster_lm.data import BatchSampler, Vocabulary, build_instances, split_instructions
from fastcluster_lm.errors import DataError, FclmError
from fastcluster_lm.tasks import Task, TaskSet

CPU = torch.device("cpu")


def test_no_instruction_is_in_both_splits_and_none_twice(taskset):
    split = split_instructions(taskset, n_train=5, n_val=3, seed=0)
    for train, val in zip(split.train, split.val, strict=True):
        assert (len(train), len(val)) == (5, 3)
        assert len({*train, *val}) == 8


def test_a_split_depends_on_its_seed_alone(taskset):
    once, again, other = (split_instructions(taskset, n_train=5, n_val=3, seed=seed) for seed in (0, 0, 1))
    assert once == again
    assert once != other


def test_too_small_a_language_is_refused_with_its_key(taskset):
    with pytest.raises(FclmError, match=r"tasks\[0\].expressions\[1\]"):
        split_instructions(taskset, n_train=6, n_val=3, seed=0)


def test_instances_say_what_they_belong_to(taskset, vocabulary, splits):
    train, _ = splits
    assert len(train) == 6 * 5 * 3
    for row in range(0, len(train), 7):
        letters = vocabulary.decode(train.tokens[row, :4].tolist())
        task, expression = taskset.distributions[int(train.distribution[row])]
        assert task == train.task[row]
        assert set(letters) <= expression.alphabet
        given = int(train.input[row])
        assert vocabulary.decode([int(train.tokens[row, train.output_position[row]])]) == [taskset.inputs[given]]
        assert taskset.tasks[task].table[given] == train.output[row]
        assert vocabulary.decode([int(train.targets[row])]) == [taskset.outputs[int(train.output[row])]]


def test_an_instruction_keeps_its_number_over_all_inputs(splits):
    train, _ = splits
    for number in train.instruction.unique().tolist():
        members = train.instruction == number
        assert (train.tokens[members, :4] == train.tokens[members][:1, :4]).all()
        assert sorted(train.input[members].tolist()) == [0, 1, 2]


def test_lengths_are_padded_at_the_end_and_balanced():
    tasks = (Task("a", ("[ab]+",), (0, 1)), Task("b", ("[cd]+",), (1, 0)))
    taskset = TaskSet(inputs=("x", "y"), outputs=("0", "1"), lengths=(2, 3), tasks=tasks)
    split = split_instructions(taskset, n_train=4, n_val=2, seed=0)
    assert [sorted(len(text) for text in texts) for texts in split.train] == [[2, 2, 3, 3]] * 2
    instances = build_instances(taskset, split.train, Vocabulary.of(taskset), CPU)
    short = instances.output_position == 2
    assert (instances.tokens[short, 3] == 0).all()
    assert (instances.tokens[~short, 3] != 0).all()
    with pytest.raises(DataError, match="multiple of the 2 instruction lengths, got 3"):
        split_instructions(taskset, n_train=3, n_val=2, seed=0)


def test_the_instruction_end_can_be_probed(taskset, vocabulary):
    split = split_instructions(taskset, n_train=5, n_val=3, seed=0)
    at_end = build_instances(taskset, split.train, vocabulary, CPU, positions=("instruction",))
    assert (at_end.probe_positions[:, 0] == at_end.output_position - 1).all()
    assert at_end.inputs(torch.arange(2))[2] is not None


def test_several_tokens_can_be_probed_in_their_order(taskset, vocabulary):
    split = split_instructions(taskset, n_train=5, n_val=3, seed=0)
    both = build_instances(taskset, split.train, vocabulary, CPU, positions=("instruction", "input"))
    end = both.output_position
    assert torch.equal(both.probe_positions, torch.stack((end - 1, end), 1))
    assert torch.equal(both.select(torch.tensor([3])).probe_positions, both.probe_positions[3:4])
    # the input's alone is where the output is predicted anyway
    assert build_instances(taskset, split.train, vocabulary, CPU).probe_positions is None


def test_next_tokens_follow_the_instruction_and_end_with_the_output(splits):
    train, _ = splits
    index = torch.tensor([0, 8])
    following = train.next_tokens(index)
    assert torch.equal(following[:, :4], train.tokens[index, 1:])
    assert torch.equal(following[:, 4], train.targets[index])


def test_an_epoch_shows_each_instance_once():
    sampler = BatchSampler(20, 8, seed=0)
    drawn = torch.cat([sampler.draw() for _ in range(5)])
    assert sorted(drawn[:20].tolist()) == list(range(20))
    assert sorted(drawn[20:].tolist()) == list(range(20))
    assert drawn[:20].tolist() != drawn[20:].tolist()


def test_a_sampler_goes_on_from_its_state():
    whole, stopped = (BatchSampler(20, 8, seed=5) for _ in range(2))
    for _ in range(3):
        whole.draw(), stopped.draw()
    resumed = BatchSampler(20, 8, seed=0)
    resumed.load_state({key: value.clone() for key, value in stopped.state().items()})
    for _ in range(6):
        assert torch.equal(whole.draw(), resumed.draw())
