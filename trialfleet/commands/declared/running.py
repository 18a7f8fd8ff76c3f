"""Commands that evaluate: `run` and `up` run one study, `worker` serves those of others."""

from pathlib import Path
from typing import Any

import click

from trialfleet.commands.declared.options import (
    EPILOG,
    begin,
    broker_option,
    home_option,
    json_option,
    log_option,
    metrics_option,
    quiet_option,
    study_options,
    verbose_option,
)
from trialfleet.flags import StudyFlags
from trialfleet.logs import LogFormat


@click.command(epilog=EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@broker_option
@study_options
@metrics_option
@json_option
@home_option
@verbose_option
def run(
    study_file: Path,
    broker: str | None,
    *,
    metrics_port: int | None,
    as_json: bool,
    home: Path | None,
    verbose: bool,
    **flags: Any,
) -> int:
    """Run the study that STUDY_FILE describes, or go on with it.

    Without --broker it is evaluated on this machine; with it, on the workers that were started with the same broker.
    Ctrl-C finishes what is in flight, and the same command goes on from there; Ctrl-C twice gives up what is in flight.
    """
    from trialfleet.commands.run import run_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose)
    return run_command(
        study_file,
        StudyFlags(**flags),
        environment,
        broker or environment.broker_url,
        metrics_port=metrics_port,
        as_json=as_json,
    )


@click.command(epilog=EPILOG)
@broker_option
@click.option("--slots", type=click.IntRange(min=1), help="Evaluations at the same time; default: the cores.")
@click.option(
    "--objective-path",
    "paths",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    help="Folder whose objectives may run here; may be given again. Default: the present one.",
)
@click.option(
    "--objective",
    "references",
    metavar="REF",
    multiple=True,
    help="Module whose objectives may run here: package, package.module or package.module:function; may be given again.",
)
@click.option("--burst", is_flag=True, help="Leave when there is nothing to do.")
@metrics_option
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    metavar="ADDRESS",
    help="Address to serve metrics at; 0.0.0.0 is all of this machine's, for a Prometheus elsewhere.",
)
@log_option
@quiet_option
@home_option
@verbose_option
def worker(  # click passes options by name
    broker: str | None,
    slots: int | None,
    paths: tuple[Path, ...],
    references: tuple[str, ...],
    burst: bool,
    metrics_port: int | None,
    metrics_host: str,
    log_format: LogFormat | None,
    quiet: bool,
    home: Path | None,
    verbose: bool,
) -> int:
    """Evaluate for studies that are run with the same broker.

    Only objectives below an --objective-path, or named by --objective, are run, and only if their code is the study's;
    without either option, those below the folder that the worker is started in. SIGTERM or Ctrl-C finishes what is
    being evaluated and leaves; a second one hands it back at once.
    """
    from trialfleet.commands.worker import worker_command  # noqa: PLC0415  # see the package

    environment = begin(home, verbose=verbose, daemon=True, quiet=quiet, log_format=log_format)
    return worker_command(
        environment,
        broker or environment.broker_url,
        slots=slots,
        paths=paths,
        references=references,
        burst=burst,
        metrics_port=metrics_port,
        metrics_host=metrics_host,
    )


@click.command(epilog=EPILOG)
@click.argument("study_file", type=click.Path(path_type=Path))
@click.option("--workers", type=click.IntRange(min=1), default=2, show_default=True, help="Worker processes.")
@study_options
@json_option
@home_option
@verbose_option
def up(study_file: Path, workers: int, *, as_json: bool, home: Path | None, verbose: bool, **flags: Any) -> int:
    """Run a study on a fleet of its own: a private RabbitMQ node and workers, all on this machine.

    Needs the rabbitmq-server program, but neither a service nor root rights. Everything is stopped at the end.
    """
    from trialfleet.commands.up import up_command  # noqa: PLC0415  # see the package

    return up_command(study_file, StudyFlags(**flags), begin(home, verbose=verbose), workers=workers, as_json=as_json)


#: What the program has of this theme.
COMMANDS = (run, worker, up)
