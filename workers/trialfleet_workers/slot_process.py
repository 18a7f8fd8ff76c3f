"""One slot: a process that evaluates one thing at a time, forked from a zygote that has the imports done."""

import contextlib
import gc
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from typing import Any, Protocol

from trialfleet_shared.caching import key_of
from trialfleet_shared.errors import DataError, TrialfleetError
from trialfleet_shared.messages import Evaluation, EvaluationResult, Outcome, StudySpec
from trialfleet_workers import linux
from trialfleet_workers.clocks import ProcessClock
from trialfleet_workers.evaluate import evaluate, failed
from trialfleet_workers.frames import (
    Begin,
    Declined,
    Done,
    Failed,
    FrameReader,
    FromSlot,
    Offer,
    Ready,
    frame,
    slot_decoder,
)
from trialfleet_workers.objective import Objective
from trialfleet_workers.offers import claim


class DataSource(Protocol):
    """An opened data set."""

    def split(self, *, fold: int, fraction: float, rung: int, seed: int, share: bool) -> Any:
        """What an objective is given as `data`: the fold's parts at this fraction."""
        ...


#: Opens the data set that a study names. Raises DataError.
OpenData = Callable[[StudySpec], DataSource]


def run_slot(sock: socket.socket, claims: int, zygote: int, load: Callable[[], Objective], open_data: OpenData) -> None:
    """Serve evaluations until the pool closes its end. Called once, right after the fork.

    Args:
        sock: connected to the pool.
        claims: an eventfd; see `offers.py`.
        zygote: process id of the parent; the slot dies with it.
        load: gives the objective, raising ObjectiveError.
        open_data: opens a data set; never called before the fork, since LMDB must not be carried across one.
    """
    os.setpgid(0, 0)
    linux.die_with_parent(zygote)
    linux.volunteer_for_oom_killer()
    ignore_interrupts()
    # A child that the objective forks is ended by whoever started it: give it back the signals.
    os.register_at_fork(after_in_child=_heed_interrupts)
    slot = _Slot(load, open_data)
    reader = FrameReader(sock, slot_decoder())
    pid = os.getpid()
    while reader.receive():
        for message in reader.messages():
            if isinstance(message, Begin):
                answer: FromSlot = slot.begin(message)
            elif isinstance(message, Offer) and not claim(claims):
                answer = Declined()
            else:
                answer = Done(slot.run(message.evaluation), ProcessClock().cpu())
            if os.getpid() != pid:  # the objective forked, and its child came back here
                os._exit(0)
            flush_output()
            sock.sendall(frame(answer))
            if isinstance(answer, Done) and answer.result.outcome is Outcome.MEMORY:
                return  # what filled the memory may still be held somewhere: nothing else is to begin here
            slot.tidy()


class _Slot:
    def __init__(self, load: Callable[[], Objective], open_data: OpenData) -> None:
        self._load = load
        self._open_data = open_data
        self._clock = ProcessClock()
        self._objective: Objective | None = None
        self._spec: StudySpec | None = None
        self._source: DataSource | None = None
        self._source_digest = ""
        self._since_collection = 0

    def begin(self, message: Begin) -> Ready | Failed:
        """Take up a study."""
        linux.unlimit_memory()
        spec = self._spec = message.spec
        try:
            self._objective = self._objective or self._load()
            self._objective.check(has_data=bool(spec.data_digest))
            if spec.data_digest != self._source_digest:
                self._source = self._open_data(spec) if spec.data_digest else None
                self._source_digest = spec.data_digest
        except TrialfleetError as error:
            return Failed(str(error), data=isinstance(error, DataError))
        linux.limit_memory(message.memory_limit)
        return Ready()

    def run(self, evaluation: Evaluation) -> EvaluationResult:
        """Evaluate."""
        assert self._spec is not None
        assert self._objective is not None
        self._since_collection += 1
        try:
            data = self._data(self._spec, evaluation) if self._objective.takes_data else None
        except MemoryError:
            linux.unlimit_memory()
            return failed(evaluation, Outcome.MEMORY, "the data do not fit into the memory limit")
        except TrialfleetError as error:
            return failed(evaluation, Outcome.REFUSED, str(error))
        _seed(self._spec, evaluation)
        result = evaluate(evaluation, data, self._objective, self._clock)
        if result.outcome is Outcome.MEMORY:
            # The pool replaces a slot that ran out of memory; until then the answer must find room.
            linux.unlimit_memory()
        return result

    def tidy(self) -> None:
        """Collect garbage when it is time."""
        if self._spec is not None and self._since_collection >= self._spec.collect_interval:
            self._since_collection = 0
            gc.collect()
            linux.return_freed_memory()

    def _data(self, spec: StudySpec, evaluation: Evaluation) -> Any:
        if self._source is None:
            return None
        return self._source.split(
            fold=evaluation.fold,
            fraction=evaluation.fraction,
            rung=evaluation.rung,
            seed=spec.seed,
            share=spec.share_memory,
        )


def _seed(spec: StudySpec, evaluation: Evaluation) -> None:
    """Seed the global generators from the result key: repeated, an evaluation gives the same answer in any slot.

    Without it all slots forked from one zygote would draw the same numbers from numpy's global generator.
    """
    key = key_of(spec, fraction=evaluation.fraction, fold=evaluation.fold, params=evaluation.params)
    seed = int.from_bytes(key[:4], "little")
    random.seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


def flush_output() -> None:
    """Write out what was printed, where an objective has not closed the stream or put what it likes in its place."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()


def ignore_interrupts() -> None:
    """Leave it to the pool when to end: systemd and terminals signal a whole group.

    A handler that does nothing rather than SIG_IGN, which programs that an objective starts would inherit.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _do_nothing)
    # Writing to the terminal from a background group must not stop the process (`stty tostop`).
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)


def _do_nothing(_number: int, _frame: object) -> None:
    pass


def _heed_interrupts() -> None:
    with contextlib.suppress(ValueError):  # not the main thread's to decide
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
