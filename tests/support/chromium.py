"""A page as a browser without a screen shows it."""

import subprocess
from pathlib import Path
from typing import NamedTuple

from support.programs import need

#: Milliseconds of the page's own time after which it is looked at.
_VIRTUAL_MILLISECONDS = 3000


class Page(NamedTuple):
    """What became of a page."""

    #: The document after its scripts have run, as HTML.
    document: str
    #: What scripts said on the console, errors above all.
    console: list[str]


def open_page(url: str, profile: Path) -> Page:
    """Open it in Chromium.

    Args:
        url: of the page; file:// is one too.
        profile: folder for the browser's own files.
    """
    command = [
        *(need("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--enable-logging=stderr", f"--user-data-dir={profile}"),
        *(f"--virtual-time-budget={_VIRTUAL_MILLISECONDS}", "--dump-dom", url),
    ]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=90, check=True)
    return Page(ran.stdout, [line for line in ran.stderr.splitlines() if ":CONSOLE" in line])
