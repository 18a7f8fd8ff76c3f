"""The embedded fleet: the same slots as a worker's, in this process's care, without a broker."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import FleetError
from trialfleet_shared.fleet import FleetReport, LostEvaluation, Poison
from trialfleet_shared.messages import Evaluation, EvaluationResult, StudySpec
from trialfleet_workers.adapters.evaluator import data_opener
from trialfleet_workers.slots import SlotPool
from trialfleet_workers.telemetry import NO_TELEMETRY, PoolFigures, WorkerTelemetry
from trialfleet_workers.threads import ThreadPool


class LocalFleet:
    """Evaluates on this machine. Implements `trialfleet_shared.fleet.Fleet`.

    Args:
        slots: evaluations that run at the same time.
        base: folder that objectives given as files are relative to.
        data_path: the data cache; None when the study has no data.
        functions: objectives in memory, by the name after "memory:".
        use_processes: slots are processes (deadline, memory limit, crash isolation); else threads, see `threads.py`.
        clock: measures deadlines and utilisation.
        name: who evaluates, as results say it.
        telemetry: watches.
    """

    def __init__(
        self,
        *,
        slots: int,
        base: Path,
        data_path: Path | None,
        functions: Mapping[str, Callable[..., Any]] = MappingProxyType({}),
        use_processes: bool = True,
        clock: Clock,
        name: str = "local",
        telemetry: WorkerTelemetry = NO_TELEMETRY,
    ) -> None:
        self._telemetry = telemetry
        self._workers = frozenset((name,))
        if use_processes:
            self._pool: SlotPool | ThreadPool = SlotPool(
                slots=slots, base=base, data_path=data_path, functions=functions, name=name, clock=clock
            )
        else:
            self._pool = ThreadPool(
                slots=slots,
                base=base,
                open_data=data_opener(data_path),
                functions=functions,
                name=name,
                clock=clock,
            )
        self._spec: StudySpec | None = None

    def preload(self, spec: StudySpec) -> None:
        """Begin to import the objective of the study that is to be started, whatever its data will be; does not wait for it.

        Raises:
            ObjectiveError: the objective can not be loaded, as far as that is known at once.
            FleetError: the fleet is closed, or no process can be started.
        """
        self._pool.preload(spec)

    def start(self, spec: StudySpec) -> None:
        """Import the objective, open the data, start the slots.

        Raises:
            ObjectiveError: the objective can not be loaded.
            DataError: the data can not be opened.
            FleetError: the fleet is closed, or its slots do not start.
        """
        self._pool.prepare(spec)
        self._spec = spec

    def slots(self) -> int:
        """The number of slots; it does not change."""
        return self._pool.slots

    def workers(self) -> frozenset[str]:
        """This one."""
        return self._workers

    def submit(self, evaluations: Sequence[Evaluation]) -> None:
        """Have them evaluated, in this order. Raises FleetError when the fleet is not started, or closed."""
        if self._spec is None:
            raise FleetError("the fleet is not started")
        self._pool.submit(self._spec, *evaluations)

    def poll(self, timeout: float) -> tuple[list[EvaluationResult], list[LostEvaluation]]:
        """What came to its end, waiting up to `timeout` seconds for the first; this fleet loses nothing."""
        results = [result for _, result in self._pool.poll(timeout)]
        if self._spec is not None:
            self._telemetry.answered(self._spec.study, results)
        self._telemetry.turned(PoolFigures.of(self._pool))
        return results, []

    def wake(self) -> None:
        """Have a `poll` that is waiting, or else the next one, return early. May be called from any thread."""
        self._pool.wake()

    def acknowledge(self) -> None:
        """Nothing to do: results are delivered once."""

    def bury(self, poison: Poison) -> None:
        """Nothing to do: nothing outlives the study but its record."""

    def report(self) -> FleetReport:
        """What the fleet measured of itself. It can be asked after `close`."""
        self._pool.pss_bytes()
        return FleetReport(
            slots=self._pool.slots,
            workers=1,
            busy_slot_seconds=self._pool.busy_slot_seconds,
            available_slot_seconds=self._pool.available_slot_seconds,
            pss_bytes=self._pool.peak_pss_bytes,
        )

    def close(self) -> None:
        """End everything that runs. May be called twice."""
        self._pool.close()
