"""What is known of a data set once it is imported."""

import msgspec


class DataInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A data set in the cache: its digests and its shape."""

    #: Digest of contents and layout: equal digests mean equal rows in equal order with equal folds.
    digest: str
    #: Digest of the contents alone, as the source had them.
    content_digest: str
    #: All rows, test part included.
    rows: int
    #: Training rows of each fold.
    train_rows: tuple[int, ...]
    #: Validation rows of each fold.
    valid_rows: tuple[int, ...]
    #: Rows of the test part.
    test_rows: int
    #: Feature columns.
    columns: tuple[str, ...]
    #: Target column, or "y".
    target: str
    #: Bytes in the cache.
    size_bytes: int
    #: Rows left out because their target is missing.
    dropped_rows: int = 0
    #: Columns that are categories for the sake of a few texts among many numbers, with one such text each.
    odd_texts: dict[str, str] = {}
