"""Work on a pool of threads, with results in the order of the items."""

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import TypeVar

import torch

ItemT = TypeVar("ItemT")
StateT = TypeVar("StateT")
OutT = TypeVar("OutT")


def default_workers() -> int:
    """As many workers as PyTorch uses intra-op threads: the cores, unless the user said otherwise."""
    return torch.get_num_threads()


def ordered_map(
    function: Callable[[StateT, ItemT], OutT],
    states: Sequence[StateT],
    items: Iterable[ItemT],
    *,
    abort: threading.Event | None = None,
    intra_op_threads: int = 1,
) -> Generator[OutT, None, None]:
    """Yields `function(state, item)` for each item, in order; each of the states serves one thread at a time.

    Results do not depend on the number of states: every call runs with `intra_op_threads` of PyTorch's and without the
    caller's `no_grad`, inference mode, autocast or default device. At most two results a state are under way or
    waiting. When the caller stops early, or a call raises, `abort` is set for the calls under way to see, the rest are
    dropped, and the threads are gone when control returns. A single state serves the caller's own thread: PyTorch's
    pool of intra-op threads is at its best there, and several times slower in a second thread of a machine without
    cores to spare.
    """
    with computing_with(intra_op_threads):
        if len(states) == 1:
            try:
                for item in items:
                    with _own_modes():
                        result = function(states[0], item)
                    yield result
            except BaseException:
                if abort is not None:
                    abort.set()
                raise
            return
        free: queue.SimpleQueue[StateT] = queue.SimpleQueue()
        for state in states:
            free.put(state)

        def call(item: ItemT) -> OutT:
            state = free.get()
            try:
                return function(state, item)
            finally:
                free.put(state)

        pool = ThreadPoolExecutor(len(states), "dswag", initializer=torch.set_num_threads, initargs=(intra_op_threads,))
        try:
            remaining = iter(items)
            pending: deque[Future[OutT]] = deque(pool.submit(call, item) for item in islice(remaining, 2 * len(states)))
            while pending:
                yield pending.popleft().result()
                pending.extend(pool.submit(call, item) for item in islice(remaining, 1))
        except BaseException:
            if abort is not None:
                abort.set()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _own_modes() -> Iterator[None]:
    """The modes that a new thread starts with.

    Weights that an autocast within these has cast would be kept until the outermost ends, here after all steps: so
    none are kept. A mode for the device costs something at every operation: there is one only where it is needed.
    """
    with (
        nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu"),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast("cpu", enabled=False, cache_enabled=False),
        torch.autocast("cuda", enabled=False, cache_enabled=False),
    ):
        yield


@contextmanager
def computing_with(number: int) -> Iterator[None]:
    """This thread, and those started within, compute with this many intra-op threads each."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
