"""Files whose bytes change behind everybody's back, and looks at them in a process that may die of it."""

import json
import os
import signal
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis.strategies as st


class Died(NamedTuple):
    """A signal ended the process that looked."""

    signal: str


def flips(size: int) -> st.SearchStrategy[tuple[int, int]]:
    """Offsets in a file of so many bytes, each with what is flipped there."""
    return st.tuples(st.integers(0, size - 1), st.integers(1, 255))


def flipped(content: bytes, flip: tuple[int, int]) -> bytes:
    """The content with one byte changed."""
    offset, mask = flip
    return content[:offset] + bytes([content[offset] ^ mask]) + content[offset + 1 :]


def seen_by_child(look: Callable[[], Any]) -> Any:
    """What `look` returns, JSON types, in a forked process; `Died` when that ends by a signal, as LMDB's asserts do."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the child needs none of the parent's threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reading)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            with os.fdopen(writing, "wb") as answer:
                answer.write(json.dumps(look()).encode())
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        content = answer.read()
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return Died(signal.Signals(os.WTERMSIG(status)).name)
    assert os.WEXITSTATUS(status) == 0, "the look itself failed"
    return json.loads(content)


def write_alone(folder: Path, content: bytes) -> None:
    """Have `data.mdb` of the environment in `folder` hold this, and nothing of an earlier one beside it."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        if file.is_file():
            file.unlink()
    (folder / "data.mdb").write_bytes(content)
