"""The ring of newest states, against a plain dictionary that does the same."""

import pytest
import torch

from fastcluster_lm.probe.sources.ring import StateRing


def make(n_slots: int, n_instances: int) -> StateRing:
    return StateRing(2, n_slots, 3, n_instances, torch.device("cpu"))


def batch_states(batch: torch.Tensor, step: int) -> torch.Tensor:
    """Give states that name their instance and step."""
    values = batch[:, None, None] * 1000.0 + step
    return values + torch.arange(2)[:, None] * 0.25 + torch.zeros(3)


@pytest.mark.parametrize(("n_slots", "n_instances", "size"), [(8, 30, 3), (8, 30, 20), (5, 6, 4), (16, 16, 5)])
def test_it_holds_the_newest_instances_with_their_newest_states(n_slots, n_instances, size):
    ring, newest = make(n_slots, n_instances), {}
    draw = torch.Generator().manual_seed(0)
    for step in range(40):
        batch = torch.randint(n_instances, (size,), generator=draw)
        ring.push(batch, batch_states(batch, step), step)
        for instance in batch.tolist():
            newest.pop(instance, None)
            newest[instance] = step
        held = {i: s for i, s in zip(ring.instances.tolist(), ring.seen_at.tolist(), strict=True) if i >= 0}
        expected = sorted(newest.values())[-n_slots:]
        assert sorted(held.values()) == expected
        assert all(newest[i] == s for i, s in held.items())
        for slot, (i, s) in enumerate(zip(ring.instances.tolist(), ring.seen_at.tolist(), strict=True)):
            if i >= 0:
                assert torch.equal(ring.states[:, slot], batch_states(torch.tensor([i]), s)[0])
        assert ring.full == (len(held) == n_slots)


def test_an_instance_keeps_its_slot_and_a_new_one_takes_the_oldest():
    ring = make(4, 10)
    ring.push(torch.tensor([1, 2, 3, 4]), batch_states(torch.tensor([1, 2, 3, 4]), 0), 0)
    before = ring.instances.clone()
    again = torch.tensor([3, 1])
    ring.push(again, batch_states(again, 1), 1)
    assert torch.equal(ring.instances, before)
    other = torch.tensor([9])
    ring.push(other, batch_states(other, 2), 2)
    # 2 and 4 were the oldest; the lower slot goes first
    assert torch.equal(ring.instances, torch.where(before == 2, 9, before))
    assert ring.mean_age(4) == (4 - 1 + 4 - 1 + 4 - 2 + 4 - 0) / 4


def test_of_a_batch_with_too_many_the_last_are_kept_and_of_one_that_comes_twice_the_last():
    ring, batch = make(4, 10), torch.tensor([0, 7, 1, 2, 3, 1, 4])
    states = torch.arange(7.0)[:, None, None].expand(7, 2, 3)
    ring.push(batch, states, 0)
    held = dict(zip(ring.instances.tolist(), ring.states[0, :, 0].tolist(), strict=True))
    assert held == {2: 3.0, 3: 4.0, 1: 5.0, 4: 6.0}


def test_a_saved_ring_goes_on_alike():
    ring, draw = make(8, 30), torch.Generator().manual_seed(1)
    batches = [torch.randint(30, (5,), generator=draw) for _ in range(12)]
    for step in range(6):
        ring.push(batches[step], batch_states(batches[step], step), step)
    other = make(8, 30)
    other.load_state({key: value.clone() for key, value in ring.state().items()})
    for step in range(6, 12):
        for one in (ring, other):
            one.push(batches[step], batch_states(batches[step], step), step)
    assert all(torch.equal(a, b) for a, b in zip(ring.state().values(), other.state().values(), strict=True))
