"""What is done to a world. A fault returns once it is over: what was stopped goes on, what was cut is healed."""

import contextlib
import os
import random
import signal
import time
from collections.abc import Callable, Mapping

from support.chaos_world import HEARTBEAT_SECONDS, World
from trialfleet_coordinator.leases import MISSED_HEARTBEATS

#: Longer than every heartbeat: those of connections, and those of workers, which are lost after three of a second each.
SILENCE_SECONDS = float(max(3 * HEARTBEAT_SECONDS, MISSED_HEARTBEATS + 1))
#: Seconds that an embedded study is stopped: it has no heartbeats.
_PAUSE_SECONDS = 2.0
#: Seconds that the disk stays full.
_FULL_SECONDS = 2.0
#: Seconds that the clock is off by.
_STEPS = (-86_400, -3600, -1, 1, 3600, 86_400)

Fault = Callable[[World, random.Random], str]


def kill_slot(world: World, chance: random.Random) -> str:
    return _kill_one(world.evaluators()[1], "slot", chance)


def kill_zygote(world: World, chance: random.Random) -> str:
    return _kill_one(world.evaluators()[0], "zygote", chance)


def kill_coordinator(world: World, chance: random.Random) -> str:
    assert world.coordinator is not None
    if world.coordinator.poll() is None:
        world.coordinator.kill()
        world.coordinator.wait()
        world.start_coordinator()
    return f"killed the coordinator; session {world.sessions}"


def stop_coordinator(world: World, chance: random.Random) -> str:
    assert world.coordinator is not None
    seconds = SILENCE_SECONDS if world.is_fleet else _PAUSE_SECONDS
    return _stop(world.coordinator.pid, f"the coordinator for {seconds:g} s", seconds)


def kill_worker(world: World, chance: random.Random) -> str:
    number = chance.randrange(len(world.workers))
    worker = world.workers.pop(number)
    worker.kill()
    worker.wait()
    world.start_worker(abroad=chance.random() < 0.5)
    return "killed a worker and started another"


def stop_worker(world: World, chance: random.Random) -> str:
    worker = chance.choice(world.workers)
    return _stop(worker.pid, f"a worker for {SILENCE_SECONDS:g} s", SILENCE_SECONDS)


def kill_broker(world: World, chance: random.Random) -> str:
    assert world.node is not None
    world.node.kill()
    world.node.start()
    return "killed the broker and started it again"


def cut_network(world: World, chance: random.Random) -> str:
    assert world.namespace is not None
    world.namespace.cut()
    try:
        time.sleep(SILENCE_SECONDS)
    finally:
        world.namespace.heal()
    return f"cut the network for {SILENCE_SECONDS:g} s"


def fill_disk(world: World, chance: random.Random) -> str:
    sessions = world.sessions
    with world.full_disk():
        end = time.monotonic() + _FULL_SECONDS
        while time.monotonic() < end:
            time.sleep(0.1)
    world.finished()  # starts it again if that ended it
    return f"filled the disk for {_FULL_SECONDS:g} s{'' if world.sessions == sessions else '; the coordinator ended'}"


def step_clock(world: World, chance: random.Random) -> str:
    seconds = chance.choice(_STEPS)
    world.step_clock(seconds)
    return f"stepped the clock by {seconds:+d} s"


#: By name: the fault, how often it is chosen in an embedded study, and in one on a fleet. What takes long is chosen less.
FAULTS: Mapping[str, tuple[Fault, int, int]] = {
    "killed slot": (kill_slot, 6, 6),
    "killed zygote": (kill_zygote, 3, 3),
    "killed coordinator": (kill_coordinator, 4, 2),
    "stopped coordinator": (stop_coordinator, 2, 1),
    "killed worker": (kill_worker, 0, 3),
    "stopped worker": (stop_worker, 0, 1),
    "killed broker": (kill_broker, 0, 1),
    "cut network": (cut_network, 0, 1),
    "full disk": (fill_disk, 2, 1),
    "stepped clock": (step_clock, 2, 1),
}


def plan(seed: int, world: World, count: int) -> list[str]:
    """Names of the faults of a study, in order; all kinds that can be tried before any comes again."""
    chance = random.Random(seed)
    weights = {name: entry[2 if world.is_fleet else 1] for name, entry in FAULTS.items() if name not in world.missing}
    kinds = [name for name, weight in weights.items() if weight]
    chance.shuffle(kinds)
    return [*kinds, *chance.choices(list(weights), list(weights.values()), k=count)][:count]


def _kill_one(processes: list[int], what: str, chance: random.Random) -> str:
    if not processes:
        return f"found no {what} to kill"
    process = chance.choice(processes)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    return f"killed a {what}"


def _stop(process: int, what: str, seconds: float) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.kill(process, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(process, signal.SIGCONT)
    return f"stopped {what}"
