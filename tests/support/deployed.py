"""What deployment files say to trialfleet, held against what trialfleet understands."""

import ast
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest.mock import patch
from urllib.parse import parse_qs, urlsplit

import click

from trialfleet.cli import cli
from trialfleet.environment import read_environment

ROOT = Path(__file__).parents[2]
OPS = ROOT / "ops"


def check_arguments(arguments: Sequence[str]) -> None:
    """Parse a command's arguments as the command would, without running it. Raises click.UsageError."""
    group = cli
    assert isinstance(group, click.Group)
    name, *rest = arguments
    command = group.commands.get(name)
    assert command is not None, f"trialfleet has no command {name!r}, only {sorted(group.commands)}"
    # The folders of a deployment are not here: paths are taken as they are.
    with patch.object(click.Path, "convert", lambda _self, value, _parameter, _context: value):
        command.make_context(name, list(rest))


def check_variables(variables: Mapping[str, str], folder: Path) -> None:
    """Read an environment as trialfleet does; files of secrets are made in `folder`. Raises ConfigurationError."""
    secret = folder / "secret"
    secret.write_text("amqp://localhost/")
    read_environment({name: str(secret) if name.endswith("_FILE") else value for name, value in variables.items()})


def named_certificates(url: str) -> set[str]:
    """The files that a broker URL names."""
    (options,) = parse_qs(urlsplit(url).query)["ssl_options"]
    return set(ast.literal_eval(options).values())
