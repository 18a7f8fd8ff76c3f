"""The zygotes of a slot pool: which objectives have one, how one is started, and which goes when there are too many."""

import math
import selectors
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from trialfleet_shared.clock import Clock
from trialfleet_shared.errors import ObjectiveError, TrialfleetError, message_of
from trialfleet_shared.messages import StudySpec
from trialfleet_workers.allowance import Allowance, resolve
from trialfleet_workers.frames import Prepare, Prepared
from trialfleet_workers.handles import Zygote
from trialfleet_workers.in_memory import pickle_function
from trialfleet_workers.objective import MEMORY_PREFIX

#: Seconds that the import of an objective may take.
IMPORT_SECONDS = 300.0
#: Times that a zygote is started when it is killed while it imports.
_MOST_STARTS = 3
#: Objectives whose zygotes are kept; the one used longest ago goes first.
_MOST_ZYGOTES = 4


class ObjectiveSources:
    """Says where a zygote is to load a study's objective from.

    Args:
        base: folder that objectives given as files are relative to.
        functions: objectives in memory, by the name after "memory:".
        allowance: which objectives may run; None: any that is found from `base`.
    """

    def __init__(self, base: Path, functions: Mapping[str, Callable[..., Any]], allowance: Allowance | None) -> None:
        self._base = base
        self._functions = functions
        self._allowance = allowance

    def prepare(self, spec: StudySpec) -> Prepare:
        """What the zygote is told.

        Raises:
            ObjectiveError: the objective is not allowed, is other code than the study's, or is in another process.
        """
        try:
            return self._prepare(spec)
        except TrialfleetError:
            raise
        except Exception as error:
            # One study's objective must not end the worker, and then, delivered again, the next one.
            raise ObjectiveError(
                f"{spec.objective!r} can not be looked at: {type(error).__name__}: {message_of(error)}"
            ) from error

    def _prepare(self, spec: StudySpec) -> Prepare:
        function = None
        if spec.objective.startswith(MEMORY_PREFIX):
            reference, base = spec.objective.removeprefix(MEMORY_PREFIX), self._base
            function = pickle_function(self._in_memory(reference), reference)
        else:
            reference, base = resolve(spec.objective, spec.objective_digest, self._base, self._allowance)
        return Prepare(reference, str(base), function, own=self._allowance is not None, preload=True)

    def _in_memory(self, name: str) -> Callable[..., Any]:
        if name not in self._functions:
            raise ObjectiveError(f"objective {MEMORY_PREFIX + name!r} is in another process's memory")
        return self._functions[name]


class Zygotes:
    """One zygote for each objective in use.

    Args:
        data_path: the data cache; None when no study has data.
        selector: listens to them.
        clock: measures how long an import takes, and when one was used last.
        hear: called, by way of the selector's data, when one has something to say.
    """

    def __init__(
        self,
        *,
        data_path: Path | None,
        selector: selectors.BaseSelector,
        clock: Clock,
        hear: Callable[[Zygote], None],
    ) -> None:
        self._data_path = data_path
        self._selector = selector
        self._clock = clock
        self._hear = hear
        self._by_objective: dict[tuple[str, str], Zygote] = {}

    def __iter__(self) -> Iterator[Zygote]:
        """All of them; they may be removed meanwhile."""
        return iter(list(self._by_objective.values()))

    def __contains__(self, zygote: Zygote) -> bool:
        """Whether it is in use."""
        return zygote in self._by_objective.values()

    def find(self, spec: StudySpec) -> Zygote | None:
        """The zygote of the study's objective, which is then in use by the study."""
        zygote = self._by_objective.get(_objective(spec))
        if zygote is not None:
            self._use(zygote, spec)
        return zygote

    def start(self, spec: StudySpec, prepare: Prepare) -> Zygote:
        """Start one for the study's objective; it imports meanwhile. Raises FleetError when no process can be started."""
        zygote = Zygote(prepare, self._data_path)
        self._by_objective[_objective(spec)] = zygote
        self._listen(zygote)
        self._use(zygote, spec)
        return zygote

    def imported(self, zygote: Zygote, message: Prepared) -> None:
        """It has imported its objective: it is ready, or starts again if its import has made it unfit to fork."""
        if zygote.preloads and message.threads > 1:
            # The import started threads; a fork would leave the locks they hold taken for ever.
            self._selector.unregister(zygote.control)
            zygote.start_again_without_preload()
            self._listen(zygote)
            return
        zygote.ready = True
        zygote.studies.clear()
        zygote.limit = math.inf

    def imports_again(self, zygote: Zygote) -> bool:
        """It died while it imported; whether it starts over: when it was killed from outside, but not for ever."""
        if zygote.starts >= _MOST_STARTS or not zygote.killed_importing():
            return False
        self._selector.unregister(zygote.control)
        zygote.start_again()
        self._listen(zygote)
        return True

    def surplus(self, working: Collection[Zygote]) -> Zygote | None:
        """The one to end before another is started: the one used longest ago, if there are too many, none of `working`."""
        if len(self._by_objective) < _MOST_ZYGOTES:
            return None
        idle = [zygote for zygote in self._by_objective.values() if zygote not in working and zygote.ready]
        return min(idle, key=lambda zygote: zygote.used_at, default=None)

    def remove(self, zygote: Zygote) -> None:
        """Listen to it no longer, and give it to no study."""
        self._by_objective = {key: kept for key, kept in self._by_objective.items() if kept is not zygote}
        self._selector.unregister(zygote.control)

    def _use(self, zygote: Zygote, spec: StudySpec) -> None:
        if not zygote.ready:
            zygote.studies.add(spec)
        zygote.used_at = self._clock.monotonic()

    def _listen(self, zygote: Zygote) -> None:
        self._selector.register(zygote.control, selectors.EVENT_READ, lambda: self._hear(zygote))
        zygote.limit = self._clock.monotonic() + IMPORT_SECONDS


def _objective(spec: StudySpec) -> tuple[str, str]:
    return spec.objective, spec.objective_digest
