"""What is hidden of texts that people read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trialfleet_shared.redaction import HIDDEN, without_secrets

SECRET_TEXTS = [
    "amqp://user:secret@host:5672/vhost",
    "lost the broker at amqps://user:secret@host (AMQPError)",
    "amqp://secret@host",
    "https://host/data.csv?x=1&password=secret&y=2",
    "s3://bucket/key?aws_secret_access_key=secret",
    "amqps://user:sec@ret:se/cret@host",
    "Authorization: Bearer secret",
    "two: amqp://a:secret@b amqp://c:secret@d",
]


@pytest.mark.parametrize("text", SECRET_TEXTS)
def test_secrets_are_hidden(text: str) -> None:
    shown = without_secrets(text)
    for part in ("secret@", "=secret", "sec@", "ret@", "r secret", "//secret"):
        assert part not in shown
    assert HIDDEN in shown


def test_what_is_no_secret_stays() -> None:
    for text in ("http://127.0.0.1:8765/v1/studies", "mail me@example.org", "amqp://user:***@host", "a: b@c", "x = 1"):
        assert without_secrets(text) == text
    assert without_secrets("amqp://user:secret@host:5672/v") == "amqp://user:***@host:5672/v"


@given(st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=8, max_size=20))
def test_no_password_of_a_url_is_ever_shown(password: str) -> None:
    assert f":{password}@" not in without_secrets(f"at amqp://user:{password}@host, it failed").replace(HIDDEN, "")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("read s3://key:pass@bucket/x failed", "read s3://key:***@bucket/x failed"),
        ("amqp://u:p@ss@host/", "amqp://u:***@host/"),
        ("https://host/x?token=abc&rows=5", "https://host/x?token=***&rows=5"),
        ('{"password": "hunter2", "x": 1}', '{"password": "***", "x": 1}'),
        ('{\\"api_key\\":\\"abc\\"}', '{\\"api_key\\":\\"***\\"}'),
        ("login failed: password=hunter2 was refused", "login failed: password=*** was refused"),
        ("Authorization: Bearer abcdef, it said", "Authorization: Bearer *** it said"),
        ("amqp://user:pa/ss@host/v", "amqp://user:***@host/v"),
        ("trial 5 was lost", "trial 5 was lost"),
        ("3 of 5 passed, passing: 3, the keys: a, b", "3 of 5 passed, passing: 3, the keys: a, b"),
    ],
)
def test_a_secret_alone_is_hidden(text: str, shown: str) -> None:
    assert without_secrets(text) == shown
