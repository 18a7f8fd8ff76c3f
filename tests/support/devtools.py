"""A browser without a screen that is acted upon, over the DevTools protocol on a pipe."""

import json
import os
import select
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from support.programs import need
from support.waiting import wait_until

#: Seconds that the browser may take to answer.
_PATIENCE = 60.0


class Browser:
    """Chromium with one page; a context manager that starts and stops it.

    Args:
        profile: folder for the browser's own files.
    """

    def __init__(self, profile: Path) -> None:
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()
        chromium = [
            *(need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
        ]
        # The browser reads from descriptor 3 and writes to 4; the pipes may have these numbers themselves.
        wiring = f'exec {{a}}<&{to_browser} {{b}}>&{from_browser} && exec 3<&$a 4>&$b && exec "$@"'
        self._process = subprocess.Popen(
            ["bash", "-c", wiring, "chromium", *chromium],
            pass_fds=(to_browser, from_browser),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_browser)
        os.close(from_browser)
        self._session: str | None = None
        self._asked = 0
        self._unread = b""

    def __enter__(self) -> Self:
        """Open an empty page."""
        try:
            target = self.call("Target.createTarget", url="about:blank")["targetId"]
            self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the browser."""
        # It ends by itself when nobody can ask it anything any more.
        os.close(self._to)
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def open(self, url: str) -> None:
        """Have the page show what is at `url`."""
        self.call("Page.navigate", url=url)

    def show_on(self, width: int, height: int) -> None:
        """Have a screen of so many pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=True)

    def run(self, script: str) -> Any:
        """What an expression of JavaScript comes to in the page."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, script: str) -> None:
        """Return once the expression is true."""
        wait_until(lambda: self.run(script), script)

    def call(self, method: str, **params: Any) -> Any:
        """The answer to one call of the protocol."""
        self._asked += 1
        call = {"id": self._asked, "method": method, "params": params}
        session = {} if self._session is None else {"sessionId": self._session}
        os.write(self._to, json.dumps(call | session).encode() + b"\0")
        end = time.monotonic() + _PATIENCE
        while True:
            message = self._read(end)
            if message.get("id") == self._asked:
                assert "error" not in message, message
                return message["result"]

    def _read(self, end: float) -> Any:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._from], [], [], max(end - time.monotonic(), 0))
            assert ready, "the browser does not answer"
            some = os.read(self._from, 2**20)
            assert some, "the browser has ended"
            self._unread += some
        message, _, self._unread = self._unread.partition(b"\0")
        return json.loads(message)
