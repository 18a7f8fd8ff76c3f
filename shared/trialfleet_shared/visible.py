"""Control characters of what comes from outside: a terminal would obey them, so they are shown as escapes.

They are those of Unicode's category Cc. Line ends and tabs only stand where they do no harm, and stay.
"""

#: What texts match that have none, line ends and tabs included.
NO_CONTROLS = r"\A[^\x00-\x1f\x7f-\x9f]*\Z"

_CONTROLS = (*range(0x20), *range(0x7F, 0xA0))
_IN_TEXT = {code: f"\\x{code:02x}" for code in _CONTROLS if chr(code) not in "\n\t"}
_IN_JSON = {code: f"\\u{code:04x}" for code in _CONTROLS if code >= 0x20}


def is_unicode(text: str) -> bool:
    """Whether it can be written as UTF-8: what Python makes of file names that are none can not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def visible(text: str) -> str:
    """The text with control characters as Python writes them, and line ends as on Unix."""
    return text.replace("\r\n", "\n").translate(_IN_TEXT)


def visible_in_json(document: str) -> str:
    """The same JSON document, with those control characters as escapes too that JSON lets stand in its texts."""
    return document.translate(_IN_JSON)
