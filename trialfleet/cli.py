"""The `trialfleet` command.

Results go to standard output, everything else to standard error. Exit statuses: 0 done, 1 failure, 2 usage or
configuration, 3 broker, 4 store, 128 + n when signal n ended it; what serves until a signal comes ends with 0 then.
"""

import logging
import signal
import sys
import traceback
from collections.abc import Sequence

import click

from trialfleet import streams
from trialfleet.commands.declared import care, deadletters, recorded, running, service
from trialfleet.commands.declared.options import EPILOG, Invocation
from trialfleet.signals import Interrupted
from trialfleet_shared.errors import TrialfleetError
from trialfleet_shared.visible import visible

_LOG = logging.getLogger("trialfleet")


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="trialfleet", message="%(prog)s %(version)s")
def cli() -> None:
    """Tune hyperparameters on all cores of this machine, or on a fleet of machines."""


for _theme in (running, recorded, care, service, deadletters):
    for _command in _theme.COMMANDS:
        cli.add_command(_command)


def main() -> None:
    """The entry point: every way to end becomes an exit status, every error one line."""
    streams.prepare()
    sys.exit(_status(sys.argv[1:], Invocation()))


def _status(arguments: Sequence[str], invocation: Invocation) -> int:
    try:
        # --help, --version and workers end with a status, other commands with nothing.
        status = cli.main(list(arguments), prog_name="trialfleet", standalone_mode=False, obj=invocation) or 0
        sys.stdout.flush()  # here, where an error is told
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see {error.ctx.command_path} --help)"
        _complain(f"{error.format_message()}{hint}", invocation)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 128 + signal.SIGINT
    except Interrupted as interrupted:
        return interrupted.exit_status
    except BrokenPipeError:
        return 1  # whoever read our output has gone (rich ends with the same status)
    except TrialfleetError as error:
        _complain(str(error), invocation)
        return error.exit_status
    except Exception as error:  # noqa: BLE001  # it is told as the bug that it is
        return _unexpected(error, arguments, invocation)
    return status


def _unexpected(error: Exception, arguments: Sequence[str], invocation: Invocation) -> int:
    odd = next((argument for argument in arguments if not _is_unicode(argument)), None)
    if isinstance(error, UnicodeEncodeError) and odd is not None:
        _complain(f"{odd!a} is not Unicode, as names of studies are", invocation)
        return 2
    where = "" if invocation.verbose else ", -v shows where"
    _complain(f"unexpected {type(error).__name__}: {error}; this is a bug in trialfleet{where}", invocation)
    return 1


def _is_unicode(argument: str) -> bool:
    """Whether the shell gave text; other bytes come as half surrogates (PEP 383), and paths may have them."""
    return all(not "\ud800" <= character <= "\udfff" for character in argument)


def _complain(message: str, invocation: Invocation) -> None:
    """One line on standard error about the error that is being handled; where it comes from, to those who want to know."""
    if invocation.logs_json:
        _LOG.error(message, exc_info=invocation.verbose)
        return
    click.echo(f"error: {visible(' '.join(message.split()))}", err=True)
    if invocation.verbose:
        click.echo(visible(traceback.format_exc()), nl=False, err=True)
