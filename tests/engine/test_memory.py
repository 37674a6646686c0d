"""A batch that does not fit into the memory: halved, and as many more added up, without an end of the training."""

import gc

import pytest
import torch

from relay_core.engine import RelayRun
from relay_core.engine.checkpoint import newest
from relay_core.errors import Stopped
from relay_core.strategies import RelayStrategy

CPU = torch.device("cpu")


@pytest.fixture
def small_memory(monkeypatch):
    """Let a step with more than `most` images run out of memory, as a GPU's allocator says it."""
    whole = RelayStrategy.step

    def limit(most, of_stage=1):
        def step(self, images, labels, position):
            if self.stage >= of_stage and len(images) + self._replay_count() > most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return whole(self, images, labels, position)

        monkeypatch.setattr(RelayStrategy, "step", step)

    return limit


def play(toy, run, out="out", **options):
    said = []
    RelayRun(run, toy.folder / out, toy.data, CPU, emit=lambda event: said.append(event.to_json()), **options)()
    return [event["message"] for event in said if event["event"] == "warning"], said


def test_a_batch_that_does_not_fit_is_halved_and_added_up(toy, small_memory):
    small_memory(4)
    warnings, said = play(toy, toy.run(sites=1, train={"accumulate_grad_batches": 1}))
    assert len(warnings) == 1
    assert "a batch of 8 does not fit into the memory of cpu (CUDA out of memory" in warnings[0]
    assert "going on with 4, and 2 of them added up" in warnings[0]
    last = newest(toy.folder / "out/task_1", print)
    assert [last.meta[key] for key in ("step", "steps", "halvings", "consumed")] == [12, 12, 1, 48]
    assert last.meta["settings"] == toy.run(sites=1, train={"accumulate_grad_batches": 1}).site(1).shared()
    assert int(last.tensors["optimizer/solver/0/step"]) == 6  # as many steps of the optimizer as with the whole batch
    assert [event["step"] for event in said if event["event"] == "step"] == list(range(1, 13))


def test_it_is_found_anew_where_the_replay_needs_more_and_the_next_site_begins_whole(toy, small_memory):
    small_memory(4, of_stage=2)
    run = toy.run(sites=2, train={"accumulate_grad_batches": 3, "checkpoint_seconds": 0})
    warnings, _ = play(toy, run)
    assert len(warnings) == 1
    first, second = (newest(toy.folder / f"out/task_{site}", print) for site in (1, 2))
    assert [c.meta.get("halvings", 0) for c in (first, second)] == [0, 1]
    assert [(c.meta["step"], c.meta["consumed"]) for c in (first, second)] == [(6, 48), (12, 36)]
    assert second.meta["optimizers"]["solver"]["pending"] == 0
    assert int(second.tensors["optimizer/solver/0/step"]) == 2


def test_a_halved_training_goes_on_halved_and_bit_equal(toy, small_memory):
    small_memory(4)
    run = toy.run(sites=1, train={"accumulate_grad_batches": 3, "checkpoint_seconds": 0})
    play(toy, run, "whole")
    calls = iter(range(1, 99))
    with pytest.raises(Stopped):
        play(toy, run, "parts", stop=lambda: next(calls) == 5)
    warnings, _ = play(toy, run, "parts", resume=True)
    assert warnings == []
    assert newest(toy.folder / "parts/task_1", print).digest == newest(toy.folder / "whole/task_1", print).digest


def test_a_gradient_that_was_pending_counts_for_the_smaller_batches(toy, small_memory):
    """Of three batches a step, one was added up when the replay began, and the rest comes in halves."""
    small_memory(4, of_stage=2)
    run = toy.run(sites=2, train={"accumulate_grad_batches": 2, "checkpoint_seconds": 0})
    play(toy, run)
    last = newest(toy.folder / "out/task_2", print)  # halved at step 3 of 6, with a batch pending
    assert (last.meta["step"], last.meta["optimizers"]["solver"]["pending"]) == (12, 0)
    assert int(last.tensors["optimizer/solver/0/step"]) == 3


def test_a_lack_of_memory_elsewhere_is_not_the_batchs(toy, monkeypatch):
    def fail(self, *args):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(RelayStrategy, "end_site", fail)
    with pytest.raises(torch.OutOfMemoryError):
        play(toy, toy.run(sites=1))
    assert (
        newest(toy.folder / "out/task_1", print) is None or "halvings" not in newest(toy.folder / "out/task_1", print).meta
    )


def test_where_nothing_fits_the_error_is_told(toy, small_memory):
    small_memory(1)
    with pytest.raises(torch.OutOfMemoryError):
        play(toy, toy.run(sites=1))
    gc.collect()


def test_another_error_is_not_taken_for_a_lack_of_memory(toy, monkeypatch):
    def step(self, images, labels, position):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(RelayStrategy, "step", step)
    with pytest.raises(RuntimeError, match="shapes"):
        play(toy, toy.run(sites=1))
