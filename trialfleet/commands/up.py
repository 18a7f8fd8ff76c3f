"""`trialfleet up`: a private RabbitMQ node, workers and the coordinator of one study, all on this machine."""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from trialfleet.children import ended_with_us
from trialfleet.commands.output import error_console, results_only, say
from trialfleet.commands.run import requested, run_and_report
from trialfleet.engine import cores
from trialfleet.environment import BROKER_URL, BROKER_URL_FILE, Environment
from trialfleet.flags import StudyFlags
from trialfleet.home import Home
from trialfleet.rabbitmq_node import RabbitNode
from trialfleet.signals import EndSignals
from trialfleet.study_file import StudyRequest
from trialfleet_shared.errors import FleetError
from trialfleet_workers.objective import parse_reference

#: Seconds that a worker may take to leave when it is told to.
_LEAVE_SECONDS = 10.0


def up_command(study_file: Path, flags: StudyFlags, environment: Environment, *, workers: int, as_json: bool) -> int:
    """Start everything, run the study, print its report, stop everything; the exit status, as of `run`."""
    with results_only() as results, EndSignals() as signals, ExitStack() as stack:
        notes = error_console()
        request, warm_start = requested(study_file, flags, environment)
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trialfleet-up-")))
        node = RabbitNode(folder / "rabbitmq")
        stack.callback(node.stop)
        say(notes, "starting a private RabbitMQ node …")
        node.start()
        url_file = folder / "url"
        url_file.touch(mode=0o600)
        url_file.write_text(node.url)
        started = _Workers(request, environment, url_file, workers)
        stack.callback(started.stop)
        started.start()
        say(notes, f"RabbitMQ listens on {node.address}; {workers} workers of {started.slots} slots each")

        def check() -> None:
            node.check()
            started.check()

        stack.callback(signals.ignore)  # the first thing on the way out: nothing interrupts the stopping
        return run_and_report(
            request,
            Home(environment.home),
            results,
            notes,
            broker_url=node.url,
            warm_start=warm_start,
            as_json=as_json,
            check=check,
        )


class _Workers:
    """The worker processes of one study.

    Args:
        request: the study; its objective is what the workers may run.
        environment: says where data and results are kept.
        url_file: file that holds the broker's URL, so that it stands in no argument.
        count: how many; the study's slots are shared out among them.
    """

    def __init__(self, request: StudyRequest, environment: Environment, url_file: Path, count: int) -> None:
        self._request = request
        self._home = environment.home
        self._url_file = url_file
        self._count = count
        self._processes: list[subprocess.Popen[bytes]] = []
        #: Slots of each.
        self.slots = max(1, request.config.slots(cores()) // count)

    def start(self) -> None:
        """Start them. They do not get this terminal's Ctrl-C: they end when the study has."""
        environment = {name: value for name, value in os.environ.items() if name != BROKER_URL}
        environment[BROKER_URL_FILE] = str(self._url_file)
        for _ in range(self._count):
            # At once: told to leave, a worker would wait for the broker, which ends as well, to take what it has.
            command = [*ended_with_us(signal.SIGKILL), *self._command()]
            self._processes.append(subprocess.Popen(command, env=environment, start_new_session=True))

    def _command(self) -> list[str]:
        command = [
            sys.executable,
            "-m",
            "trialfleet",
            "worker",
            *("--quiet", "--log-format", "text"),
            "--slots",
            str(self.slots),
            "--home",
            str(self._home),
            "--objective-path",
            str(self._request.base),
        ]
        reference = parse_reference(self._request.objective)
        return command if reference.is_file else [*command, "--objective", reference.place]

    def check(self) -> None:
        """Raise FleetError when none is left."""
        if all(process.poll() is not None for process in self._processes):
            raise FleetError("all workers have ended; what they said stands above")

    def stop(self) -> None:
        """Have them leave, and end those that do not."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LEAVE_SECONDS)
            if process.poll() is None:
                process.kill()
                process.wait()
