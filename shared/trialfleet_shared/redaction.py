"""Texts for people without what is secret in them: passwords in URLs, bearer tokens, values whose names sound secret.

A password may hold anything but white space: better too much is hidden than too little.
"""

import re

#: What stands in place of a secret.
HIDDEN = "***"

_SECRETS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s:/@]*):\S*@", re.IGNORECASE), rf"\1:{HIDDEN}@"),
    (re.compile(r"(\b[a-z][a-z0-9+.-]*://)[^\s:/@]+@", re.IGNORECASE), rf"\1{HIDDEN}@"),
    (re.compile(r"(\bbearer\s+)\S+", re.IGNORECASE), rf"\1{HIDDEN}"),
    # As in a query, in JSON, in JSON within JSON, or in a sentence.
    (
        re.compile(
            r"((?<!//)\b(?:\w*(?:password|passwd|secret|token|signature)\w*|pass|sig|\w*key)\\?[\"']?\s*[=:]\s*\\?[\"']?)"
            r"[^\s&\"'\\,}]+",
            re.IGNORECASE,
        ),
        rf"\1{HIDDEN}",
    ),
)


def without_secrets(text: str) -> str:
    """The text, with what may be a password or a token in it hidden."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text
