"""Logs: one line per event on standard error, JSON for machines and text for people; no passwords in either.

An event's circumstances are fields, given as `extra`: study, trial, rung, worker, state, cause. Levels are for the loads
that a fleet has: what happens once per evaluation or trial is DEBUG, a study's or worker's life INFO, what went wrong
WARNING; and of warnings of the same kind, which come a thousand a second when every evaluation fails, a few are let
through, and the next one says how many were not.
"""

import json
import logging
import math
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TextIO

from trialfleet_shared.clock import Clock
from trialfleet_shared.redaction import without_secrets
from trialfleet_shared.visible import visible, visible_in_json

LogFormat = Literal["json", "text"]

#: Warnings of one kind that are let through within `RATE_SECONDS`.
RATE = 5
RATE_SECONDS = 10.0
#: Kinds of warnings that are told apart; beyond that, all others are one kind.
MOST_KINDS = 1000

#: Name of the field with the warnings that were not let through.
_SUPPRESSED = "suppressed"
#: What every record has; everything else was given as `extra`.
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """A line for people."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        suppressed = getattr(record, _SUPPRESSED, 0)
        more = f" ({suppressed} more like this were not shown)" if suppressed else ""
        return visible(without_secrets(super().format(record))) + more


class JsonFormatter(logging.Formatter):
    """One JSON object on one line: time (RFC 3339, UTC), level, logger, message, and the event's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name] = _as_json(value)
        if record.exc_info:
            line["exception"] = without_secrets(self.formatException(record.exc_info))
        return visible_in_json(json.dumps(line, ensure_ascii=False))


def _as_json(value: object) -> object:
    """A field's value: a number JSON knows, or text."""
    if value is None or isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return without_secrets(str(value))


class RateLimit(logging.Filter):
    """Lets through `RATE` warnings of a kind (logger and message, without its arguments) in `RATE_SECONDS`.

    The first one that is let through after others were not has the field `suppressed`, their number.

    Args:
        clock: measures the seconds.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock
        self._lock = threading.Lock()
        # By kind: when the present interval began, warnings in it, and those that were not let through.
        self._kinds: dict[tuple[str, str], tuple[float, int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """See `logging.Filter.filter`; called by any thread."""
        if record.levelno != logging.WARNING:
            return True
        with self._lock:
            return self._passes(record)

    def _passes(self, record: logging.LogRecord) -> bool:
        kind = (record.name, str(record.msg))
        if kind not in self._kinds and len(self._kinds) >= MOST_KINDS:
            kind = ("", "")
        now = self._clock.monotonic()
        began, count, suppressed = self._kinds.get(kind, (now, 0, 0))
        if now - began >= RATE_SECONDS:
            began, count = now, 0
        passes = count < RATE
        if passes and suppressed:
            setattr(record, _SUPPRESSED, suppressed)
        self._kinds[kind] = (began, count + 1, 0 if passes else suppressed + 1)
        return passes


def start_logging(
    stream: TextIO,
    clock: Clock,
    *,
    daemon: bool,
    verbose: bool,
    quiet: bool = False,
    log_format: LogFormat | None = None,
) -> LogFormat:
    """Have this process log to `stream`; which format was taken.

    Args:
        stream: standard error.
        clock: measures the rate of warnings.
        daemon: whether the command runs for months and writes JSON unless `stream` is a terminal; other commands are
            for people.
        verbose: log one level more.
        quiet: log warnings alone.
        log_format: the format; None: as of `daemon`.
    """
    if log_format is None:
        log_format = "json" if daemon and not stream.isatty() else "text"
    formatters: dict[LogFormat, Callable[[], logging.Formatter]] = {"json": JsonFormatter, "text": TextFormatter}
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatters[log_format]())
    handler.addFilter(RateLimit(clock))
    levels = [logging.WARNING, logging.INFO, logging.DEBUG]
    logging.getLogger().addHandler(handler)  # libraries keep to the root's level: warnings
    logging.getLogger("trialfleet").setLevel(levels[0 if quiet else daemon + verbose])
    return log_format
