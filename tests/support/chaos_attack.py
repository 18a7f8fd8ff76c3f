"""One study under attack, from its start to the verdict."""

import random
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from support.chaos_faults import FAULTS, plan
from support.chaos_world import World

#: Seconds between a recovery and the next fault, at most.
CALM_SECONDS = 0.4
#: Seconds without a new result after which a study is stuck.
STUCK_SECONDS = 240.0
#: Seconds between two looks at the record.
LOOK_SECONDS = 0.1


def attack(
    number: int,
    *,
    fleet: bool,
    seed: int,
    faults: int | Sequence[str],
    trials: int,
    seconds: float,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Run one study with faults to its end; what became of it.

    Args:
        number: of the study, which no other has at the same time.
        fleet: as of `World`.
        seed: plans the faults.
        faults: how many, or which in which order.
        trials: as of `World`.
        seconds: as of `World`.
        say: is told of each fault, and of the study's end.
    """
    chance = random.Random(f"{seed}-{number}")
    began = time.monotonic()
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="trialfleet-chaos-") as folder:
        world = World(Path(folder) / "world", number % 256, fleet=fleet, trials=trials, seconds=seconds)
        with world:
            wait_for_answers(world, 1)
            names = plan(chance.getrandbits(32), world, faults) if isinstance(faults, int) else faults
            for name in names:
                if name in world.missing:
                    continue
                time.sleep(chance.uniform(0.0, CALM_SECONDS))
                if world.finished() or world.violations:
                    break
                said = FAULTS[name][0](world, chance)
                healed = time.monotonic()
                wait_for_answers(world, world.answers() + 1)
                recovery = time.monotonic() - healed
                done.append({"fault": name, "recovery": recovery})
                say(f"  {said}; the next result after {recovery:.1f} s")
            wait_for_answers(world, trials + 1)
            if not world.violations:
                world.check()
        summary = {
            "study": number,
            "fleet": fleet,
            "faults": done,
            "sessions": world.sessions,
            "trials": trials,
            "calls": world.last_calls,
            "seconds": time.monotonic() - began,
            "violations": world.violations,
            "missing": world.missing,
        }
    verdict = "right" if not world.violations else f"WRONG: {world.violations}"
    took = f"{len(done)} faults, {world.sessions} sessions, {summary['seconds']:.0f} s"
    say(f"study {number} ({'fleet' if fleet else 'embedded'}): {took}: {verdict}")
    return summary


def wait_for_answers(world: World, count: int) -> None:
    """Wait until so many evaluations are recorded, or the study has finished; note when it does not get on."""
    latest, since = world.answers(), time.monotonic()
    while not world.finished() and latest < count and not world.violations:
        now = world.answers()
        if now > latest:
            latest, since = now, time.monotonic()
        if time.monotonic() - since > STUCK_SECONDS:
            world.violations.append(f"no result for {STUCK_SECONDS:g} s at {latest} of {world.trials}")
            return
        time.sleep(LOOK_SECONDS)
