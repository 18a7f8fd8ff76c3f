"""`trialfleet worker`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from trialfleet.collecting import ARENAS, RegularCollection
from trialfleet.engine import cores
from trialfleet.environment import BROKER_URL, BROKER_URL_FILE, Environment
from trialfleet.home import Home
from trialfleet.metrics import metrics_address, metrics_served, worker_metrics
from trialfleet.notifying import Notifier
from trialfleet_shared.clock import SystemClock
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.messages import Heartbeat
from trialfleet_shared.settings import layered
from trialfleet_workers import linux
from trialfleet_workers.adapters.actors import run_worker
from trialfleet_workers.adapters.worker_log import WorkerLog
from trialfleet_workers.allowance import Allowance
from trialfleet_workers.telemetry import Watchers

_LOG = logging.getLogger("trialfleet.worker")


def worker_command(
    environment: Environment,
    broker_url: str | None,
    *,
    slots: int | None,
    paths: Sequence[Path],
    references: Sequence[str],
    burst: bool,
    metrics_port: int | None,
    metrics_host: str,
) -> int:
    """Evaluate for whoever uses the broker until a signal ends it; the exit status."""
    if broker_url is None:
        raise ConfigurationError(f"a worker needs a broker: give --broker, {BROKER_URL} or {BROKER_URL_FILE}")
    config = layered(None, environment.settings["efficiency"])
    home = Home(environment.home)
    folders = tuple(path.resolve() for path in paths)
    if not paths and not references:
        folders = (Path.cwd(),)
        _LOG.info("objectives below %s may run here", folders[0])
    metrics = worker_metrics(home.data, alone=True)
    telemetry = Watchers(metrics, WorkerLog())
    notifier = Notifier.from_environment(os.environ)
    linux.limit_arenas(ARENAS)
    collection = RegularCollection(SystemClock())

    def on_heartbeat(heartbeat: Heartbeat) -> None:
        # The loop that owns the slots beats, so what is told here is about the work, not about some thread.
        if heartbeat.draining:
            notifier.stopping()
        else:
            notifier.ready()
        notifier.alive()
        collection.tick()

    with metrics_served([metrics], metrics_port, host=metrics_host):
        return run_worker(
            broker_url,
            slots=slots or config.slots(cores()),
            allowance=Allowance(folders, tuple(reference.partition(":")[0] for reference in references)),
            base=folders[0] if folders else Path.cwd(),
            data_path=home.data,
            results_path=home.results,
            cache_size=config.cache_size,
            cache_ttl_hours=config.cache_ttl_hours,
            burst=burst,
            on_heartbeat=on_heartbeat,
            telemetry=telemetry,
            on_cache=metrics.watch_cache,
            metrics_address="" if metrics_port is None else metrics_address(metrics_host, metrics_port, broker_url),
        )
