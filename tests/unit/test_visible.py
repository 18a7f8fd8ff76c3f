"""Control characters as escapes."""

import json
import re
import sys
import unicodedata

import pytest

from trialfleet_shared.visible import NO_CONTROLS, visible, visible_in_json

CONTROLS = [chr(code) for code in range(sys.maxunicode + 1) if unicodedata.category(chr(code)) == "Cc"]


def test_no_control_character_is_left_but_line_ends_and_tabs() -> None:
    text = visible(f"a{''.join(CONTROLS)}ü")
    assert {character for character in text if character in CONTROLS} == {"\n", "\t"}
    assert text.startswith("a\\x00\\x01")
    assert text.endswith("\\x9e\\x9fü")


def test_a_document_says_the_same_without_them() -> None:
    text = visible_in_json(json.dumps("".join(CONTROLS) + "ü", ensure_ascii=False))
    assert not set(text) & set(CONTROLS)
    assert json.loads(text) == "".join(CONTROLS) + "ü"
    assert visible_in_json("{\n}") == "{\n}"


@pytest.mark.parametrize("control", CONTROLS)
def test_texts_with_one_do_not_match(control: str) -> None:
    for text in (control, f"a{control}", f"{control}a"):
        assert not re.search(NO_CONTROLS, text)


def test_texts_without_one_match() -> None:
    for text in ("", "a b", "größe/[bold] 👩\u200d🚀"):
        assert re.search(NO_CONTROLS, text)
