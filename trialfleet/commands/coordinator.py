"""`trialfleet coordinator`."""

import logging
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from trialfleet.collecting import ARENAS, RegularCollection
from trialfleet.coordinator_files import CoordinatorFiles, check_token
from trialfleet.environment import BROKER_URL, BROKER_URL_FILE, TOKEN, Environment
from trialfleet.fleet_file import CoordinatorSection, load_fleet
from trialfleet.home import Home
from trialfleet.metrics import coordinator_metrics, metrics_registry
from trialfleet.notifying import Notifier
from trialfleet.signals import Interrupted, StopSignals
from trialfleet.watching import Watching
from trialfleet.workshop import HomeWorkshop
from trialfleet_coordinator.adapters.http.application import application
from trialfleet_coordinator.adapters.http.server import ServerTls, served
from trialfleet_coordinator.adapters.rabbit_workers import WorkerWatch
from trialfleet_coordinator.adapters.roster_files import RosterFiles
from trialfleet_coordinator.daemon import Daemon
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError
from trialfleet_workers import linux
from trialfleet_workers.allowance import Allowance

#: Seconds between two ticks of the daemon.
_TICK_SECONDS = 0.1

_LOG = logging.getLogger("trialfleet.coordinator")


def coordinator_command(config: Path | None, environment: Environment) -> None:
    """Serve studies until a signal ends it."""
    linux.limit_arenas(ARENAS)
    fleet = load_fleet(config)
    if environment.broker_url is None:
        raise ConfigurationError(f"a coordinator needs a broker: give --broker, {BROKER_URL} or {BROKER_URL_FILE}")
    files = CoordinatorFiles(environment.home)
    try:
        with files.locked():
            token = files.make_token() if environment.token is None else check_token(environment.token, TOKEN)
            all_left_off = _serve(fleet, environment.broker_url, Home(environment.home), files, token)
    except Interrupted as interrupted:
        _end_at_once(interrupted.exit_status)
    if not all_left_off:
        _LOG.info("studies were still being opened: the next coordinator begins anew with those that are not cancelled")
        _end_at_once(0)


def _end_at_once(status: int) -> NoReturn:
    """Wait for nothing that a source of data has started, as Python itself would: threads, and processes of its own."""
    for child in linux.children():
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    os._exit(status)


def _serve(fleet: CoordinatorSection, broker_url: str, home: Home, files: CoordinatorFiles, token: str) -> bool:
    """Serve; returns whether all studies have left off, as `Daemon.close` does. Raises Interrupted at a second signal."""
    clock = SystemClock()
    metrics = coordinator_metrics(home.data)
    watch = WorkerWatch(broker_url, clock=clock)
    folders = tuple(Path(folder) for folder in fleet.objective_paths)
    workshop = HomeWorkshop(home, broker_url, Allowance(folders, fleet.objectives), Watching(metrics, log=True))
    daemon = Daemon(workshop, watch, RosterFiles(files.studies), clock, most_running=fleet.most_running)
    metrics.watch_service(daemon, watch.queues)
    http = application(daemon, token=token, registry=metrics_registry([metrics]), clock=clock)
    tls = None
    if fleet.tls_certificate is not None and fleet.tls_key is not None:
        tls = ServerTls(fleet.tls_certificate, fleet.tls_key, fleet.tls_client_ca)
    notifier = Notifier.from_environment(os.environ)
    collection = RegularCollection(clock)
    pause = threading.Event()
    with (
        StopSignals(lambda name: _LOG.info("%s: studies leave off where they are", name)) as signals,
        served(http, fleet.host, fleet.port, tls) as url,
        files.announced(url),
    ):
        watch.start()
        try:
            _LOG.info("the coordinator of %s listens at %s", home.path, url)
            notifier.ready()
            while signals.cause() is None:
                daemon.tick()
                collection.tick()
                notifier.alive()
                pause.wait(_TICK_SECONDS)
        finally:
            notifier.stopping()
            all_left_off = daemon.close()
            watch.close()
    return all_left_off
