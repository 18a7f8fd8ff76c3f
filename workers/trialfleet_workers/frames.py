"""What a pool, its zygotes and its slots say to each other, over socket pairs that only they hold.

A frame is a length (4 bytes, little-endian) and that many bytes of JSON. Descriptors travel beside a frame.
"""

import array
import socket
from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec

_LENGTH_BYTES = 4
_READ_BYTES = 2**16
#: Descriptors that one read takes at most.
_MOST_DESCRIPTORS = 64


class Prepare(msgspec.Struct, frozen=True, tag=True):
    """To a zygote, once: load this objective."""

    #: "package.module:function" or "file.py:function"; what messages call a function in memory.
    reference: str
    #: Folder that the reference is relative to.
    base: str
    #: The pickled function when it is one in memory.
    function: bytes | None
    #: As of `load_function`.
    own: bool
    #: Load it in the zygote; else each slot loads it, which is slower but safe when the import starts threads.
    preload: bool


class Fork(msgspec.Struct, frozen=True, tag=True):
    """To a zygote: start this slot; its socket and the descriptor of its claims travel beside the frame."""

    slot: int


class Kill(msgspec.Struct, frozen=True, tag=True):
    """To a zygote: kill this slot and all that it started."""

    slot: int


class Begin(msgspec.Struct, frozen=True, tag=True):
    """To a slot: evaluations of this study follow."""

    spec: StudySpec
    #: Bytes of private memory the slot may take beyond what it has by then.
    memory_limit: int


class Run(msgspec.Struct, frozen=True, tag=True):
    """To a slot: evaluate this."""

    evaluation: Evaluation


class Offer(msgspec.Struct, frozen=True, tag=True):
    """To a slot that evaluates: evaluate this next, if it can still be claimed then."""

    evaluation: Evaluation


class Prepared(msgspec.Struct, frozen=True, tag=True):
    """From a zygote: the objective can be loaded."""

    #: Threads of the zygote; with more than one, slots forked from it could hang.
    threads: int


class Forked(msgspec.Struct, frozen=True, tag=True):
    """From a zygote: the slot runs."""

    slot: int
    pid: int


class Died(msgspec.Struct, frozen=True, tag=True):
    """From a zygote: the slot ended."""

    slot: int
    #: Its wait status.
    status: int
    #: CPU seconds of its whole life.
    cpu_seconds: float


class Ready(msgspec.Struct, frozen=True, tag=True):
    """From a slot: it waits for evaluations."""


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a zygote or slot: it can not do what it was asked."""

    message: str
    #: Whether the data are the reason, else the objective.
    data: bool = False


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a slot: the evaluation came to its end."""

    result: EvaluationResult
    #: CPU seconds of the slot's life so far.
    cpu_seconds: float


class Declined(msgspec.Struct, frozen=True, tag=True):
    """From a slot: the offer could not be claimed, as it was withdrawn."""


ToZygote = Prepare | Fork | Kill
FromZygote = Prepared | Forked | Died | Failed
ToSlot = Begin | Run | Offer
FromSlot = Ready | Failed | Done | Declined

_encoder = msgspec.json.Encoder()
_T = TypeVar("_T")


def frame(message: ToZygote | FromZygote | ToSlot | FromSlot) -> bytes:
    """The message as a frame."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(_LENGTH_BYTES, "little") + payload


class FrameReader(Generic[_T]):
    """Takes frames from a socket.

    Args:
        sock: a connected, blocking stream socket.
        decoder: of the messages expected there.
        wait: whether `receive` waits.
    """

    def __init__(self, sock: socket.socket, decoder: "msgspec.json.Decoder[_T]", *, wait: bool = True) -> None:
        self._sock = sock
        self._flags = socket.MSG_CMSG_CLOEXEC | (0 if wait else socket.MSG_DONTWAIT)
        self._decoder = decoder
        self._buffer = bytearray()
        #: Descriptors that came beside frames, in order. They are the taker's to close.
        self.descriptors: deque[int] = deque()

    def receive(self) -> int | None:
        """Take what is there. Returns its bytes; 0 at the other side's end; None where nothing is there yet."""
        try:
            data, ancillary, _, _ = self._sock.recvmsg(
                _READ_BYTES, socket.CMSG_SPACE(_MOST_DESCRIPTORS * 4), self._flags
            )
        except BlockingIOError:
            return None
        except ConnectionError:
            return 0
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
                self.descriptors.extend(fds)
        self._buffer += data
        return len(data)

    def messages(self) -> Iterator[_T]:
        """The complete messages taken so far. Raises msgspec.DecodeError on one that is not expected."""
        while len(self._buffer) >= _LENGTH_BYTES:
            end = _LENGTH_BYTES + int.from_bytes(self._buffer[:_LENGTH_BYTES], "little")
            if len(self._buffer) < end:
                return
            payload = bytes(self._buffer[_LENGTH_BYTES:end])
            del self._buffer[:end]
            yield self._decoder.decode(payload)


def zygote_decoder() -> msgspec.json.Decoder[ToZygote]:
    """For frames to a zygote."""
    return msgspec.json.Decoder(ToZygote)


def from_zygote_decoder() -> msgspec.json.Decoder[FromZygote]:
    """For frames from a zygote."""
    return msgspec.json.Decoder(FromZygote)


def slot_decoder() -> msgspec.json.Decoder[ToSlot]:
    """For frames to a slot."""
    return msgspec.json.Decoder(ToSlot)


def from_slot_decoder() -> msgspec.json.Decoder[FromSlot]:
    """For frames from a slot."""
    return msgspec.json.Decoder(FromSlot)
