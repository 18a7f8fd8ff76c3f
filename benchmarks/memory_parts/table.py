"""The table that the memory benchmark is about, as a parquet file."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet

#: Columns of float64: so many features less one, and the target.
COLUMNS = 100
_BLOCK_ROWS = 65_536
ROW_BYTES = COLUMNS * 8


def write_table(path: Path, rows: int) -> None:
    """Write so many rows of random numbers; the target is the column `y`."""
    random = np.random.default_rng(0)
    names = [*(f"x{number}" for number in range(COLUMNS - 1)), "y"]
    schema = pa.schema([(name, pa.float64()) for name in names])
    with pa.parquet.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for start in range(0, rows, _BLOCK_ROWS):
            block = random.random((len(names), min(_BLOCK_ROWS, rows - start)))
            writer.write_table(pa.table(list(block), schema=schema))
