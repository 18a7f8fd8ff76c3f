"""The page that lists studies and workers, and what a browser lets it do."""

import base64
import hashlib
import re
from importlib.resources import files

#: The page; it holds all that it needs.
PAGE = files(__package__).joinpath("page.html").read_text(encoding="utf-8")


def policy(page: str) -> str:
    """Its Content-Security-Policy: run its own script and no other, load nothing, speak to where it came from.

    A name that became markup by a mistake of the page's could neither run a script nor send anything anywhere.
    """
    return (
        f"default-src 'none'; style-src {_digest(page, 'style')}; script-src {_digest(page, 'script')}; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _digest(page: str, element: str) -> str:
    found = re.search(rf"<{element}>(.*?)</{element}>", page, re.DOTALL)
    assert found is not None
    return f"'sha256-{base64.b64encode(hashlib.sha256(found[1].encode()).digest()).decode()}'"
