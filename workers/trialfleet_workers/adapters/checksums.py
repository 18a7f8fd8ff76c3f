"""Checksums of a data set's file, in a file beside it: whether it is byte for byte what was written.

CRC-32 of each block, so that a change of up to 32 bits in a row is always noticed, and any other but for one in 2^32. The
file is read past LMDB, which may crash on a damaged one.
"""

import zlib
from pathlib import Path

import msgspec

from trialfleet_shared.adapters.private_files import private

#: Bytes that one checksum is of.
BLOCK_BYTES = 16 * 2**20
#: Bytes read at a time: what stays in a core's cache between the read and the sum.
_READ_BYTES = 2**20


class Checksums(msgspec.Struct, frozen=True):
    """Of a file."""

    size: int
    blocks: list[int]


def sums_file(data: Path) -> Path:
    """Where the checksums of a data set's file are."""
    return data.with_suffix(".sums")


def write_checksums(data: Path) -> None:
    """Write down what a file is. Raises OSError."""
    with open(sums_file(data), "wb", opener=private) as file:
        file.write(msgspec.json.encode(_checksums(data)))


def damage(data: Path) -> str:
    """What is wrong with a data set's file; empty when it is as it was written. Raises FileNotFoundError."""
    written = _written(data)
    if isinstance(written, str):
        return written
    try:
        found = _checksums(data).blocks
    except OSError as error:
        return f"it can not be read: {error.strerror or error}"
    changed = [number for number, pair in enumerate(zip(found, written.blocks, strict=False)) if pair[0] != pair[1]]
    if changed or len(found) != len(written.blocks):
        return f"{len(changed)} of its {len(found)} blocks of {BLOCK_BYTES >> 20} MiB changed"
    return ""


def evident_damage(data: Path) -> str:
    """As `damage`, as far as it can be told without reading the file."""
    written = _written(data)
    return written if isinstance(written, str) else ""


def _written(data: Path) -> Checksums | str:
    """What the file was when it was written; or what is wrong with it, if that is evident."""
    size = data.stat().st_size
    try:
        written = msgspec.json.decode(sums_file(data).read_bytes(), type=Checksums)
    except FileNotFoundError:
        return "it has no checksums: an earlier trialfleet made it"
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        return f"its checksums can not be read: {error}"
    if size != written.size:
        return f"it has {size} bytes in place of {written.size}"
    return written


def _checksums(data: Path) -> Checksums:
    size, blocks = 0, []
    part = memoryview(bytearray(_READ_BYTES))
    with data.open("rb", buffering=0) as file:
        while count := file.readinto(part[: BLOCK_BYTES - size % BLOCK_BYTES]):
            if size % BLOCK_BYTES == 0:
                blocks.append(0)
            blocks[-1] = zlib.crc32(part[:count], blocks[-1])
            size += count
    return Checksums(size, blocks)
