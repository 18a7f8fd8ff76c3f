"""What a coordinator keeps in a home beside the studies' records, and how commands on the same home find it.

coordinator/studies/  the roster: which studies are queued, run, are paused or have ended
coordinator/token     what whoever speaks to it has to show, made at the first start; for its owner alone
coordinator/url       where it listens, while it runs
coordinator/lock      held while it runs
"""

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trialfleet_shared.adapters.private_files import make_private_folder, private
from trialfleet_shared.errors import ConfigurationError, StoreError, StudyLockedError

#: Where a coordinator listens that is not told where.
COORDINATOR_PORT = 8765
SERVED_AT = f"http://127.0.0.1:{COORDINATOR_PORT}"
#: Random bytes of a token.
_TOKEN_BYTES = 32
#: How often it is tried to lock what somebody looks at, and seconds between two times: looking takes microseconds.
_TRIES, _LOOK_SECONDS = 5, 0.02
#: Characters that a token given by an operator must have at least.
SHORTEST_TOKEN = 16


class CoordinatorFiles:
    """The files of the coordinator of a home.

    Args:
        home: the home's folder.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "coordinator"

    @property
    def studies(self) -> Path:
        """Folder of the roster."""
        return self._folder / "studies"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the only coordinator of this home.

        Raises:
            StudyLockedError: another one runs.
            StoreError: the lock can not be made.
        """
        path = self._folder / "lock"
        try:
            make_private_folder(self._folder)
            file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StoreError(f"{path} can not be made: {error}") from error
        try:
            self._lock(file)
        except OSError as error:
            os.close(file)
            raise StudyLockedError(f"another coordinator runs on {self._folder.parent}; stop that first") from error
        try:
            yield
        finally:
            # Said aloud: processes that were forked meanwhile have the file open too, and may live on.
            fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)

    @staticmethod
    def _lock(file: int) -> None:
        """Lock it, if only somebody looks at it meanwhile whether it is locked. Raises OSError."""
        for tries_left in reversed(range(_TRIES)):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                if not tries_left:
                    raise
                time.sleep(_LOOK_SECONDS)
            else:
                return

    def token(self) -> str | None:
        """The token, when there is one that this user may read."""
        return self._read("token")

    def make_token(self) -> str:
        """The token; a new random one when there is none. Raises StoreError."""
        known = self._read("token")
        if known is not None:
            return known
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._write("token", token)
        return token

    def url(self) -> str | None:
        """Where the coordinator listens; None when there is none that runs.

        Where one listened that was killed somebody else may, who is not to be shown the token.
        """
        return self._read("url") if self._is_locked() else None

    def _is_locked(self) -> bool:
        """Whether a coordinator runs; also where this can not be told."""
        try:
            file = os.open(self._folder / "lock", os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        except OSError:
            return True
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        else:
            return False
        finally:
            os.close(file)

    @contextmanager
    def announced(self, url: str) -> Iterator[None]:
        """Have commands on this home find the coordinator at `url`. Raises StoreError."""
        self._write("url", url)
        try:
            yield
        finally:
            (self._folder / "url").unlink(missing_ok=True)

    def _read(self, name: str) -> str | None:
        try:
            return (self._folder / name).read_text(encoding="ascii").strip() or None
        except (OSError, UnicodeDecodeError):
            return None

    def _write(self, name: str, text: str) -> None:
        half = self._folder / f"{name}.half"
        try:
            half.unlink(missing_ok=True)
            with open(half, "x", encoding="ascii", opener=private) as file:
                file.write(text + "\n")
            half.replace(self._folder / name)
        except OSError as error:
            raise StoreError(f"{self._folder / name} can not be written: {error}") from error


def check_token(token: str, origin: str) -> str:
    """The token, when it is one. Raises ConfigurationError, which does not show it."""
    if len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigurationError(
            f"{origin}: a token has at least {SHORTEST_TOKEN} printable ASCII characters and no spaces"
        )
    return token
