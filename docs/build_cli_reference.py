"""Writes reference/cli.md from the commands' own help: `python docs/build_cli_reference.py`, or `make docs`."""

import inspect
from collections.abc import Iterator
from pathlib import Path

import click

from trialfleet.cli import cli

FILE = Path(__file__).parent / "reference" / "cli.md"
_HEAD = """# Commands

What `trialfleet COMMAND --help` says, made by `make docs`. For scripts: [operate the daemon](../how-to/service.md#script-it).

Results go to standard output, everything else to standard error. Every command ends with status 0 when it is done, 1 when it
failed, 2 for usage and configuration, 3 for the broker, 4 for the store, 128 + n when signal n ended it; `worker` and
`coordinator`, which serve until a signal comes, with 0 then.
"""


def document() -> str:
    """The page."""
    top = click.Context(cli, info_name="trialfleet", **cli.context_settings)
    return f"{_HEAD}{''.join(_sections(cli, top))}"


def _sections(command: click.Command, context: click.Context) -> Iterator[str]:
    """A command's section, then those of its own commands; a group itself has none."""
    if not isinstance(command, click.Group):
        usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
        yield f"\n## {context.command_path}\n\n`{usage}`\n\n{inspect.cleandoc(command.help or '')}\n"
        yield "\n| option | meaning |\n| --- | --- |\n"
        options = [option for option in command.params if isinstance(option, click.Option)]
        rows = [record for option in options if (record := option.get_help_record(context))]
        yield from (f"| `{_cell(names)}` | {_cell(meaning)} |\n" for names, meaning in rows)
        return
    for name in command.list_commands(context):
        one = command.get_command(context, name)
        if one is not None and not one.hidden:
            yield from _sections(one, click.Context(one, context, name, **one.context_settings))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
