"""For MkDocs: links to files of the repository that are no pages become their names."""

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)([^)#]+)(#[^)]*)?\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Called for each page with its text."""
    depth = page.file.src_uri.count("/")

    def named(link: re.Match[str]) -> str:
        words, ups, path, _anchor = link.groups()
        outside = ups.count("../") > depth
        return f"{words} (`{path}`)" if outside else link[0]

    return _OUTSIDE.sub(named, markdown)
