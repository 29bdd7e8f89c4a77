"""The queue: batches form while others compute, and no picture spoils another's caption."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from typing import Any

import pytest
import torch

from myllm.apps.batching import Batcher, Job, Observer, QueueFull
from myllm.caption import Caption
from myllm.checkpoints.native import Checkpoint
from myllm.data.scenes import draw_scene
from myllm.inference.captioner import Captioner

PICTURES = [draw_scene(0, "val", number)[0] for number in range(8)]
OPTIONS: list[dict[str, Any]] = [
    {}, {"beams": 3}, {"do_sample": True}, {"bad_words": ("a",)}, {"do_sample": True, "num_return_sequences": 3}
]


class Recorder(Observer):
    """Keeps the sizes of batches, and counts steps."""

    def __init__(self) -> None:
        self.batches, self.wanted, self.unwanted = list[int](), 0, 0

    def batch_begins(self, waited: Sequence[float]) -> None:
        self.batches.append(len(waited))

    def step_ends(self, is_wanted: bool) -> None:
        self.wanted += is_wanted
        self.unwanted += not is_wanted


class Gate(Captioner):
    """A captioner that computes nothing until it is opened."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint, torch.device("cpu"))
        self.opened, self.calls = threading.Event(), 0

    def caption_tensors(self, *arguments: Any, **named: Any) -> list[Caption]:
        self.calls += 1
        assert self.opened.wait(60)
        return super().caption_tensors(*arguments, **named)

    def wait_for_calls(self, count: int) -> None:
        deadline = time.monotonic() + 60
        while self.calls < count and time.monotonic() < deadline:
            time.sleep(0.002)
        assert self.calls >= count


@pytest.fixture
def gate(tiny_checkpoint: Checkpoint) -> Gate:
    return Gate(tiny_checkpoint)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def batcher(recorder: Recorder, gate: Gate) -> Iterator[Batcher]:
    """One thread, batches of at most four."""
    batcher = Batcher(1, 4, 100, recorder)
    yield batcher
    gate.opened.set()
    batcher.close()


@pytest.fixture
def job(gate: Gate) -> Callable[..., Job]:
    """job(number=0, seed=0, show=None, **options): a job for one of the pictures."""

    def make(number: int = 0, seed: int = 0, show: Any = None, **options: Any) -> Job:
        return Job(gate, gate.preprocess(PICTURES[number]), gate.decode_options(**options), seed, show)

    return make


def test_batched_captions_of_many_threads_equal_those_of_single_calls(gate: Gate, job: Callable[..., Job]) -> None:
    gate.opened.set()
    wanted = [(number, number + 17, options) for number in range(8) for options in OPTIONS]
    expected = [
        gate.caption_tensors([gate.preprocess(PICTURES[number])], gate.decode_options(**options), [seed])[0]
        for number, seed, options in wanted
    ]
    batcher = Batcher(2, 5, 100)
    with ThreadPoolExecutor(8) as clients:
        futures = list(clients.map(lambda one: batcher.submit(job(one[0], one[1], **one[2])), wanted))
    captions = [future.result(60) for future in futures]
    batcher.close()
    assert [(caption.tokens, caption.alternatives) for caption in captions] == [
        (caption.tokens, caption.alternatives) for caption in expected
    ]
    assert [caption.score for caption in captions] == pytest.approx([caption.score for caption in expected], abs=1e-4)


def test_batches_form_while_the_last_one_computes_up_to_the_limit(
    batcher: Batcher, gate: Gate, recorder: Recorder, job: Callable[..., Job]
) -> None:
    futures = [batcher.submit(job())]
    gate.wait_for_calls(1)
    futures += [batcher.submit(job(number)) for number in range(6)]
    assert batcher.waiting == 6
    gate.opened.set()
    wait(futures, 60)
    assert recorder.batches == [1, 4, 2]


def test_batches_have_jobs_of_the_same_options_the_oldest_first(
    batcher: Batcher, gate: Gate, recorder: Recorder, job: Callable[..., Job]
) -> None:
    futures = [batcher.submit(job())]
    gate.wait_for_calls(1)
    order = list[int]()
    for index, beams in enumerate([2, 1, 2, 3, 1]):
        futures.append(batcher.submit(job(index, beams=beams)))
        futures[-1].add_done_callback(lambda future, index=index: order.append(index))
    gate.opened.set()
    wait(futures, 60)
    assert recorder.batches == [1, 2, 2, 1]
    assert order == [0, 2, 1, 4, 3]


def test_places_are_limited_and_become_free_again() -> None:
    batcher = Batcher(1, 4, 2)
    with batcher.place():
        with batcher.place():
            assert batcher.is_full
            with pytest.raises(QueueFull), batcher.place():
                pass
        assert not batcher.is_full
    assert batcher.places_taken == 0
    batcher.close()


def test_job_that_is_cancelled_while_it_waits_is_never_computed(
    batcher: Batcher, gate: Gate, recorder: Recorder, job: Callable[..., Job]
) -> None:
    first = batcher.submit(job())
    gate.wait_for_calls(1)
    departed = [batcher.submit(job(number)) for number in range(3)]
    last = batcher.submit(job(5))
    for future in departed:
        assert future.cancel()
    gate.opened.set()
    assert first.result(60).tokens and last.result(60).tokens
    assert recorder.batches == [1, 1] and recorder.unwanted == 0


def test_job_that_is_cancelled_while_it_is_decoded_costs_one_more_step(
    batcher: Batcher, gate: Gate, recorder: Recorder, job: Callable[..., Job]
) -> None:
    gate.opened.set()
    expected = gate.caption_tensors([gate.preprocess(PICTURES[1])], gate.decode)[0]
    gate.opened.clear()
    batcher.submit(job())
    gate.wait_for_calls(2)
    jobs: list[Job] = []
    jobs.append(job(0, show=lambda text: jobs[0].future.cancel()))
    futures = [batcher.submit(jobs[0]), batcher.submit(job(1))]
    gate.opened.set()
    assert futures[1].result(60).tokens == expected.tokens
    assert recorder.batches == [1, 2] and recorder.unwanted == 1
    with pytest.raises(CancelledError):
        futures[0].result(60)


def test_job_that_fails_does_not_spoil_its_batch(batcher: Batcher, gate: Gate, job: Callable[..., Job]) -> None:
    gate.opened.set()
    expected = [gate.caption_tensors([gate.preprocess(picture)], gate.decode)[0].tokens for picture in PICTURES[:3]]
    gate.opened.clear()
    batcher.submit(job())
    gate.wait_for_calls(4)
    jobs = [job(number) for number in range(3)]
    jobs.insert(1, Job(gate, torch.zeros(3, 5, 5), gate.decode, 0))  # no stack of pictures can hold it
    futures = [batcher.submit(one) for one in jobs]
    gate.opened.set()
    assert [futures[index].result(60).tokens for index in (0, 2, 3)] == expected
    assert futures[1].exception(60) is not None
    assert batcher.submit(job()).result(60).tokens == expected[0]


def test_close_finishes_all_jobs_and_ends_the_threads(gate: Gate, job: Callable[..., Job]) -> None:
    batcher = Batcher(2, 2, 100)
    futures = [batcher.submit(job(number)) for number in range(7)]
    closing = threading.Thread(target=batcher.close)
    closing.start()
    gate.opened.set()
    closing.join(60)
    assert all(future.done() and future.result().tokens for future in futures)
    assert not any(thread.is_alive() for thread in batcher._threads)
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit(job())
