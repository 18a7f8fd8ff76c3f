"""The pool's side of its processes: what it knows of a zygote and of a slot, and how a zygote is started and ended."""

import contextlib
import json
import math
import os
import signal
import socket
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, field
from enum import Enum, auto
from pathlib import Path

import msgspec

from trialfleet_shared.errors import FleetError, ObjectiveError
from trialfleet_shared.messages import StudySpec
from trialfleet_workers import linux, user_processes
from trialfleet_workers.frames import (
    FrameReader,
    FromSlot,
    FromZygote,
    Prepare,
    ToZygote,
    frame,
    from_slot_decoder,
    from_zygote_decoder,
)
from trialfleet_workers.jobs import Job
from trialfleet_workers.offers import Offers

#: Seconds that a zygote may take to end everything when it is told to.
_END_SECONDS = 5.0
#: What a zygote's interpreter runs.
_BOOT = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from trialfleet_workers.adapters.evaluator import main; main(sys.argv[2:])"
)


class SlotState(Enum):
    """What a slot is doing."""

    #: Forked, or told of another study; not ready yet.
    STARTING = auto()
    #: Waiting for an evaluation.
    IDLE = auto()
    #: Evaluating.
    BUSY = auto()


class Zygote:
    """A zygote process; it exists from the moment it is started, and imports its objective meanwhile.

    Args:
        prepare: what it is to load.
        data_path: the data cache; None without data.

    Raises:
        FleetError: the process can not be started.
    """

    def __init__(self, prepare: Prepare, data_path: Path | None) -> None:
        self._prepare = prepare
        self._data_path = data_path
        #: Whether the objective is imported.
        self.ready = False
        #: The studies that wait for it to be ready.
        self.studies: set[StudySpec] = set()
        #: Evaluations that wait for the import.
        self.parked: deque[Job] = deque()
        #: When it is given up, unless it is ready before; in seconds of the pool's clock.
        self.limit = math.inf
        #: Times that it was started.
        self.starts = 0
        #: Slots in a row that died before they were ready.
        self.failed_starts = 0
        #: When it was used last, in seconds of the pool's clock.
        self.used_at = 0.0
        self._start()

    @property
    def preloads(self) -> bool:
        """Whether it imports the objective itself; else its slots do."""
        return self._prepare.preload

    def killed_importing(self) -> bool:
        """Whether SIGKILL ended it, which is not ours: want of memory, most likely. To be asked once it is silent."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        return self._process.returncode == -signal.SIGKILL

    def start_again(self) -> None:
        """Start over."""
        self.end()
        self._start()

    def start_again_without_preload(self) -> None:
        """Start over, leaving the import to the slots."""
        self.end()
        self._prepare = msgspec.structs.replace(self._prepare, preload=False)
        self._start()

    def _start(self) -> None:
        self.starts += 1
        self.control, theirs = socket.socketpair()
        self.reader: FrameReader[FromZygote] = FrameReader(self.control, from_zygote_decoder(), wait=False)
        # Python reads "" and relative entries as from the current folder, which an objective may change.
        path = [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100  # zip files and "" too
        arguments = [json.dumps(path), str(theirs.fileno()), str(os.getpid()), str(self._data_path or "")]
        with theirs:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", _BOOT, *arguments],
                    env=user_processes.environment(single_threaded=True),
                    stdin=subprocess.DEVNULL,
                    stdout=user_processes.standard_output(),
                    pass_fds=[theirs.fileno()],
                    # Out of reach of Ctrl-C: the pool's owner decides when evaluations end.
                    process_group=0,
                )
            except OSError as error:
                self.control.close()
                raise FleetError(f"evaluator processes can not be started: {error}") from error
        self.tell(self._prepare)

    def died_importing(self) -> ObjectiveError:
        """Why there is nothing to hear from it any more."""
        self.end()
        status = self._process.returncode
        death = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
        return ObjectiveError(f"{self._prepare.reference!r}: the process that imported it {death}")

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def tell(self, message: ToZygote, *descriptors: int) -> None:
        """Send it a message. One that is gone hears nothing: the end of its socket tells the pool."""
        content = frame(message)
        with contextlib.suppress(OSError):
            sent = socket.send_fds(self.control, [content], descriptors)
            self.control.sendall(content[sent:])  # where a signal came in between

    def interrupt(self) -> None:
        """Kill it while it imports, when it heeds nothing."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def gone(self) -> bool:
        """Whether the process has ended, though what it left behind may hold on to its socket."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Have it end its slots and itself, or kill it, and what its import has started. May be called twice."""
        if self.control.fileno() < 0:
            return
        self.control.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@dataclass
class Slot:
    """A slot process; it exists from the moment its zygote is asked for it."""

    number: int
    #: Which of the pool's slots it is, counted from 0: what takes a dead one's place has its number here.
    place: int
    zygote: Zygote
    sock: socket.socket
    #: The study it was told of last.
    spec: StudySpec
    state: SlotState = SlotState.STARTING
    #: Its process id, known once its zygote has told it.
    pid: int | None = None
    #: What it evaluates, or will as soon as it is ready.
    job: Job | None = None
    #: When its state began, in seconds of the pool's clock.
    since: float = 0.0
    #: When it is killed, unless its state ends before.
    limit: float = math.inf
    #: CPU seconds of its life up to its last result.
    cpu_seconds: float = 0.0
    #: Whether it is being killed for a reason that is dealt with already.
    ending: bool = False
    #: Whether its socket may still have something to say.
    connected: bool = True
    #: What it begins by itself, next.
    offers: Offers = field(default_factory=Offers)
    reader: FrameReader[FromSlot] = field(init=False)

    def __post_init__(self) -> None:
        """Listen without waiting."""
        self.reader = FrameReader(self.sock, from_slot_decoder(), wait=False)

    def cpu_used(self) -> float:
        """CPU seconds since its last result."""
        return max(0.0, linux.cpu_seconds(self.pid) - self.cpu_seconds) if self.pid is not None else 0.0

    def kill_group(self) -> None:
        """Kill it and what it started without its zygote, which is gone."""
        if self.pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
