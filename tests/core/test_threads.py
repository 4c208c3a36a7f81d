"""Work on threads: order, laziness, errors and the number of intra-op threads; events decide who is slow, no clock."""

import threading

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE

from dswag.core.threads import default_workers, ordered_map

WORKERS = (1, 2, 3)
each_number = pytest.mark.parametrize("workers", WORKERS)


@pytest.fixture(autouse=True)
def intra_op_threads():
    """Three intra-op threads before each test, whatever the machine; the same afterwards, and no thread left over."""
    before, alive = torch.get_num_threads(), threading.active_count()
    torch.set_num_threads(3)
    yield
    try:
        assert torch.get_num_threads() == 3
        assert threading.active_count() == alive
    finally:
        torch.set_num_threads(before)


def wait(event):
    assert event.wait(PATIENCE)


@settings(max_examples=25)
@given(st.permutations(range(4)))
def test_results_come_in_the_order_of_items_whoever_finishes_first(finishing):
    # four items on four threads at once; each ends only when those before it in `finishing` have ended
    ended = {item: threading.Event() for item in range(4)}

    def function(_, item):
        place = finishing.index(item)
        if place:
            wait(ended[finishing[place - 1]])
        ended[item].set()
        return item

    assert list(ordered_map(function, range(4), range(4))) == [0, 1, 2, 3]


@each_number
def test_every_item_is_worked_on_once(workers):
    counts = [0] * 50

    def function(_, item):
        counts[item] += 1
        return item * item

    assert list(ordered_map(function, range(workers), range(50))) == [n * n for n in range(50)]
    assert counts == [1] * 50


@each_number
def test_no_items_give_no_results(workers):
    assert list(ordered_map(lambda _, item: item, range(workers), [])) == []


@each_number
def test_a_state_serves_one_call_at_a_time(workers):
    states = [threading.Lock() for _ in range(workers)]

    def function(state, item):
        assert state.acquire(blocking=False)
        torch.ones(100).sum()
        state.release()
        return item

    assert list(ordered_map(function, states, range(200))) == list(range(200))


def test_all_states_are_at_work_at_once():
    barrier = threading.Barrier(3, timeout=PATIENCE)

    def function(state, _):
        barrier.wait()  # passes only with three calls under way
        return state

    assert sorted(ordered_map(function, "abc", range(3))) == ["a", "b", "c"]


@each_number
def test_every_call_has_one_intra_op_thread_and_the_caller_has_its_own_back(workers):
    assert set(ordered_map(lambda *_: torch.get_num_threads(), range(workers), range(9))) == {1}
    assert torch.get_num_threads() == 3


@each_number
def test_a_call_does_not_see_the_caller_s_modes(workers):
    # with one state as with several: otherwise the answer would depend on the number of states
    def function(*_):
        return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.is_autocast_enabled("cpu")

    with torch.inference_mode(), torch.autocast("cpu"):
        assert set(ordered_map(function, range(workers), range(4))) == {(True, False, False)}


@each_number
def test_a_call_does_not_see_the_caller_s_default_device(workers):
    with torch.device("meta"):
        assert set(ordered_map(lambda *_: torch.empty(()).device.type, range(workers), range(4))) == {"cpu"}


@each_number
def test_at_most_two_results_a_state_are_ahead_of_the_consumer(workers):
    started, lock = [], threading.Lock()
    taken = 0

    def function(_, item):
        with lock:
            started.append(item)
        return item

    def items():
        for item in range(40):
            assert item < taken + 2 * workers  # not even asked for earlier
            yield item

    for result in ordered_map(function, range(workers), items()):
        with lock:
            assert max(started) <= result + 2 * workers - 1
        taken = result + 2  # this one is used up when the next is asked for, which may start one more
    assert sorted(started) == list(range(40))


@each_number
def test_nothing_starts_before_the_first_result_is_asked_for(workers):
    calls = []
    results = ordered_map(lambda _, item: calls.append(item), range(workers), range(5))
    assert torch.get_num_threads() == 3
    results.close()
    assert calls == []


@each_number
def test_a_failing_call_raises_in_its_turn_and_sets_abort(workers):
    abort = threading.Event()

    def function(_, item):
        if item == 5:
            raise KeyError("five")
        return item

    results = ordered_map(function, range(workers), range(10_000), abort=abort)
    assert [next(results) for _ in range(5)] == [0, 1, 2, 3, 4]
    assert not abort.is_set()
    with pytest.raises(KeyError, match="five"):
        next(results)
    assert abort.is_set()
    assert list(results) == []


def test_of_several_failing_calls_the_first_in_order_is_raised():
    second_failed = threading.Event()

    def function(_, item):
        if item == 0:
            wait(second_failed)
        else:
            second_failed.set()
        raise ValueError(f"item {item}")

    with pytest.raises(ValueError, match="item 0"):
        list(ordered_map(function, range(2), range(2)))


def test_abort_reaches_calls_that_are_under_way():
    abort, running = threading.Event(), threading.Event()

    def function(_, item):
        if item == 0:
            wait(running)
            raise ValueError("stop")
        running.set()
        wait(abort)  # would hang if abort were set only after the calls under way had ended
        return item

    with pytest.raises(ValueError, match="stop"):
        list(ordered_map(function, range(2), range(2), abort=abort))


@each_number
def test_leaving_early_sets_abort_and_drops_what_has_not_started(workers):
    abort, started, lock = threading.Event(), [], threading.Lock()

    def function(_, item):
        with lock:
            started.append(item)
        return item

    results = ordered_map(function, range(workers), range(1000), abort=abort)
    assert next(results) == 0
    assert torch.get_num_threads() == 1
    results.close()
    assert abort.is_set()
    assert len(started) <= 2 * workers


@each_number
def test_an_error_in_the_consumer_ends_the_threads(workers):
    abort = threading.Event()

    def consume():
        for _ in ordered_map(lambda _, item: item, range(workers), range(1000), abort=abort):
            raise RuntimeError("in the loop's body")

    with pytest.raises(RuntimeError, match="in the loop's body"):
        consume()
    assert abort.is_set()


@each_number
def test_an_error_in_the_items_is_raised_and_sets_abort(workers):
    abort = threading.Event()

    def items():
        yield 0
        raise LookupError("no more")

    with pytest.raises(LookupError, match="no more"):
        list(ordered_map(lambda _, item: item, range(workers), items(), abort=abort))
    assert abort.is_set()


@each_number
def test_abort_stays_clear_when_all_went_well(workers):
    abort = threading.Event()
    assert list(ordered_map(lambda _, item: item, range(workers), range(9), abort=abort)) == list(range(9))
    assert not abort.is_set()


def test_a_map_within_a_map_ends():
    def outer(_, item):
        return sum(ordered_map(lambda _, inner: inner * item, range(2), range(5)))

    assert list(ordered_map(outer, range(2), range(6))) == [10 * n for n in range(6)]


def test_default_workers_follow_the_number_of_threads_that_the_user_set():
    assert default_workers() == 3
