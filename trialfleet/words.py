"""Texts on a console, which may come from outside: `words`."""

from rich.text import Text

from trialfleet_shared.visible import visible


def words(text: str = "", style: str = "") -> Text:
    """The text as it is: without markup, and with no control character that a terminal would obey."""
    return Text(visible(text), style=style)
