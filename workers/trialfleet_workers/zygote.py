"""The zygote: a process that imports the objective once and forks slots from itself, warm, in milliseconds.

It is started as a fresh interpreter, not forked from the user's program: it has one thread, and the program needs no
`if __name__ == "__main__"`, may come from standard input or be a notebook. It runs none of the user's code but the
objective's import. It ends, and everything it started with it, when the pool closes its end of the control socket or
the process that started it is gone.
"""

import contextlib
import gc
import importlib
import os
import re
import select
import signal
import socket
import sys
from collections.abc import Iterable
from pathlib import Path

import threadpoolctl

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers import linux
from trialfleet_workers.frames import (
    Died,
    Failed,
    Fork,
    Forked,
    FrameReader,
    FromZygote,
    Kill,
    Prepare,
    Prepared,
    frame,
    zygote_decoder,
)
from trialfleet_workers.in_memory import unpickle_function
from trialfleet_workers.objective import Objective, load_function
from trialfleet_workers.slot_process import OpenData, flush_output, ignore_interrupts, run_slot
from trialfleet_workers.user_modules import is_local

#: Seconds between two looks at whether the parent is still there; its end of the socket tells it at once, unless
#: another process that the parent forked holds that too.
_LOOK_SECONDS = 1.0
#: Wait status of a slot that could not be forked: "exited with status 1".
_NOT_FORKED = 1 << 8
#: What source says that asks for `data.frame` or `data.frame_valid`, and what a pickled function that does has in it.
_FRAME_IN_SOURCE = re.compile(rb"[.\"'](frame|frame_valid)\b")
_FRAME_IN_PICKLE = re.compile(rb"\x05frame\x94|\x0bframe_valid\x94")


def run_zygote(control: socket.socket, parent: int, open_data: OpenData) -> None:
    """Serve the pool at the other end of `control` until it closes it.

    Args:
        control: connected to the pool.
        parent: process id of the process that the pool is in.
        open_data: opens a data set, in a slot.
    """
    # While it imports, the zygote looks at nothing else: the kernel has to end it. Afterwards it looks for itself,
    # because the kernel's tie is to the parent's thread, which may end long before the pool.
    linux.die_with_parent(parent)
    linux.adopt_orphans()
    ignore_interrupts()
    zygote = _Zygote(control, parent, open_data)
    try:
        if zygote.prepare():
            linux.outlive_parent()
            zygote.serve()
    finally:
        zygote.kill_all()


class _Zygote:
    def __init__(self, control: socket.socket, parent: int, open_data: OpenData) -> None:
        self._control = control
        self._reader = FrameReader(control, zygote_decoder())
        self._pid = os.getpid()
        self._parent = parent
        self._open_data = open_data
        self._prepare: Prepare | None = None
        self._objective: Objective | None = None
        #: Slot number by process id, of every slot that is not reaped.
        self._slots: dict[int, int] = {}
        self._wakeup, self._wakeup_writer = socket.socketpair()

    def prepare(self) -> bool:
        """Take the first message and load the objective. Returns whether the zygote is of use."""
        while self._prepare is None:
            if not self._reader.receive():
                return False
            for message in self._reader.messages():
                assert isinstance(message, Prepare)
                self._prepare = message
        # An import makes many objects and little garbage: looking for it all the time takes a twentieth of its time.
        gc.disable()
        try:
            if self._prepare.preload:
                self._objective = self._load()
        except ObjectiveError as error:
            self._tell(Failed(str(error)))
            return False
        # The objects made so far live as long as the process: collections in slots need not touch, and so copy, them.
        gc.freeze()
        gc.enable()
        self._tell(Prepared(linux.threads()))
        return True

    def _load(self) -> Objective:
        assert self._prepare is not None
        name, pickled = self._prepare.reference, self._prepare.function
        known = set(sys.modules)
        if pickled is not None:
            function = unpickle_function(pickled, name)
        else:
            function = load_function(name, Path(self._prepare.base), own=self._prepare.own)
        objective = Objective(function, name)
        if objective.takes_data and (
            _FRAME_IN_PICKLE.search(pickled or b"") or _ask_for_frames(set(sys.modules) - known)
        ):
            importlib.import_module("pandas")
        if "numpy" in sys.modules:
            importlib.import_module("numpy.random")  # which slots seed
        # The environment limits what is loaded later; this limits what an import has set otherwise.
        threadpoolctl.threadpool_limits(1)
        return objective

    def serve(self) -> None:
        """Fork and bury slots until nobody needs them any more."""
        # After the import, which may have set its own handler.
        self._wakeup.setblocking(False)
        self._wakeup_writer.setblocking(False)
        signal.set_wakeup_fd(self._wakeup_writer.fileno())
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        while os.getppid() == self._parent:
            self._bury()
            readable, _, _ = select.select([self._control, self._wakeup], [], [], _LOOK_SECONDS)
            if self._wakeup in readable:
                with contextlib.suppress(BlockingIOError):
                    self._wakeup.recv(4096)
            if self._control in readable:
                if not self._reader.receive():
                    return
                for message in self._reader.messages():
                    if isinstance(message, Fork):
                        self._fork(message.slot, self._reader.descriptors.popleft(), self._reader.descriptors.popleft())
                    elif isinstance(message, Kill):
                        self._kill(message.slot)

    def _fork(self, slot: int, descriptor: int, claims: int) -> None:
        # What stands in the buffers would be written by both.
        flush_output()
        try:
            pid = os.fork()
        except OSError:
            os.close(descriptor)
            os.close(claims)
            self._tell(Died(slot, _NOT_FORKED, 0.0))
            return
        if pid == 0:
            status = 1
            try:
                self._become_slot(descriptor, claims)
                status = 0
            except BaseException:  # noqa: BLE001  # nothing may leave this frame: it is the zygote's
                sys.excepthook(*sys.exc_info())
            finally:
                os._exit(status)
        os.close(descriptor)
        os.close(claims)
        with contextlib.suppress(OSError):  # the slot does it too; who comes first matters to nobody
            os.setpgid(pid, pid)
        self._slots[pid] = slot
        self._tell(Forked(slot, pid))

    def _become_slot(self, descriptor: int, claims: int) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        self._wakeup.close()
        self._wakeup_writer.close()
        objective = self._objective
        with socket.socket(fileno=descriptor) as sock:
            load = (lambda: objective) if objective is not None else self._load
            run_slot(sock, claims, self._pid, load, self._open_data)

    def _kill(self, slot: int) -> None:
        for pid, number in self._slots.items():
            if number == slot:
                # Asked for first: once it has ended, what left its group is anybody's.
                for each in (pid, *linux.descendants(pid)):
                    _kill(each)

    def _bury(self) -> None:
        """Tell of every slot that ended, and end what it started."""
        while True:
            try:
                # Looked at before it is reaped: so long its process id, which is the group's too, is nobody else's.
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            slot = self._slots.pop(ended.si_pid, None)
            if slot is not None:
                _kill(ended.si_pid)
            _, status, usage = os.wait4(ended.si_pid, 0)
            if slot is not None:
                self._tell(Died(slot, status, usage.ru_utime + usage.ru_stime))

    def _tell(self, message: FromZygote) -> None:
        with contextlib.suppress(ConnectionError):  # the next look at the socket ends the zygote
            self._control.sendall(frame(message))

    def kill_all(self) -> None:
        """End the slots, what they started, and what left their groups."""
        for pid in self._slots:
            _kill(pid)
        while left := linux.children():
            for pid in left:
                _kill(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(-1, 0)


def _kill(pid: int) -> None:
    """Kill a process, and the group that it leads, or led before it went to another."""
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            kill(pid, signal.SIGKILL)


def _ask_for_frames(modules: Iterable[str]) -> bool:
    """Whether the user's own modules among these ask for frames.

    Then pandas is imported once, here, and not in every slot. Where they do not, it is not needed, or the package that
    makes use of it has imported it; at worst each slot does so itself.
    """
    for name in modules:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file is not None and file.endswith(".py") and is_local(name):
            with contextlib.suppress(OSError):
                if _FRAME_IN_SOURCE.search(Path(file).read_bytes()):
                    return True
    return False
