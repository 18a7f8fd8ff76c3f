"""`trialfleet deadletters`: what nobody could read, and what killed whoever took it."""

import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

import click
import msgspec
from rich.console import Console, Group, RenderableType
from rich.table import Table

from trialfleet.commands.output import error_console, results_only, say
from trialfleet.engine import results_address
from trialfleet.environment import BROKER_URL, BROKER_URL_FILE, Environment
from trialfleet.home import Home
from trialfleet.recorded import decided_trials
from trialfleet.rendering import finite, print_json
from trialfleet.words import words
from trialfleet_coordinator.commands import TrialState
from trialfleet_shared.adapters.dead_letters import DeadLetters, Letter
from trialfleet_shared.errors import ConfigurationError, TrialfleetError
from trialfleet_shared.fleet import Attempt
from trialfleet_shared.messages import Evaluation, StudySpec
from trialfleet_shared.visible import visible


def list_command(url: str | None, *, as_json: bool) -> None:
    """List the letters, oldest first."""
    with results_only() as results, _opened(url) as dead:
        letters = dead.letters()
        if as_json:
            print_json(results, finite(letters))
        elif letters:
            results.print(_table(letters))
        else:
            say(results, "There are no dead letters.")


def show_command(name: str, url: str | None, *, as_json: bool) -> None:
    """Show one letter with its history. Raises ConfigurationError when there is none of that name."""
    with results_only() as results, _opened(url) as dead:
        letters = dead.letters()
        letter = next((one for one in letters if one.id == name), None)
        if letter is None:
            known = ", ".join(one.id for one in letters) or "none"
            raise ConfigurationError(f"there is no dead letter {name!r}; there are: {known}")
        if as_json:
            print_json(results, finite(letter))
        else:
            results.print(_details(letter))


def requeue_command(
    names: Sequence[str], environment: Environment, url: str | None, *, every: bool, as_json: bool
) -> None:
    """Have letters evaluated that are evaluations and still wanted.

    Raises:
        ConfigurationError: neither names nor `every`, or both; or there is no letter of a name.
        TrialfleetError: some are none, or not wanted; they stay where they are.
    """
    chosen = _named(names, every=every)
    with results_only() as results, _opened(url) as dead:
        requeued, refused = dead.requeue(chosen, _unwanted(Home(environment.home)))
        if as_json:
            print_json(results, {"requeued": requeued, "refused": msgspec.to_builtins(refused)})
        else:
            _say_names(results, requeued, "requeued")
    if refused:
        raise TrialfleetError("; ".join(f"{one.id} stays: {one.reason}" for one in refused))


def drop_command(names: Sequence[str], url: str | None, *, every: bool, yes: bool, as_json: bool) -> None:
    """Take letters away for good.

    Raises:
        ConfigurationError: neither names nor `every`, or both; there is no letter of a name; or nobody can be asked.
    """
    chosen = _named(names, every=every)
    if not yes:
        if not sys.stdin.isatty():
            raise ConfigurationError("nobody can be asked whether that is meant; give --yes")
        click.confirm(
            f"Drop {'all dead letters' if every else visible(', '.join(names))} for good?", abort=True, err=True
        )
    with results_only() as results, _opened(url) as dead:
        dropped = dead.drop(chosen)
        if as_json:
            print_json(results, {"dropped": dropped})
        else:
            _say_names(results, dropped, "dropped")


def _opened(url: str | None) -> DeadLetters:
    if url is None:
        raise ConfigurationError(f"dead letters are a broker's: give --broker, {BROKER_URL} or {BROKER_URL_FILE}")
    return DeadLetters(url)


def _named(names: Sequence[str], *, every: bool) -> Sequence[str] | None:
    if bool(names) == every:
        raise ConfigurationError(
            "give the names of dead letters, as `trialfleet deadletters list` shows them, or --all"
        )
    return None if every else names


def _unwanted(home: Home) -> Callable[[StudySpec, Evaluation], str | None]:
    """Says why a study of this home waits for an evaluation no more."""
    known: dict[str, tuple[str, dict[int, TrialState]]] = {}

    def unwanted(spec: StudySpec, evaluation: Evaluation) -> str | None:
        if spec.study not in known:
            known[spec.study] = decided_trials(home, spec.study)
        identity, decided = known[spec.study]
        if spec.reply_to != results_address(home, identity):
            return None  # another home's study, or one that is deleted: its coordinator knows
        state = decided.get(evaluation.trial)
        return None if state is None else f"trial {evaluation.trial} of study {spec.study!r} is decided: {state}"

    return unwanted


def _say_names(results: Console, names: Sequence[str], what: str) -> None:
    for name in names:
        say(results, f"{name} {what}")
    if not names:
        say(error_console(), f"nothing was {what}")


# For people


def _table(letters: Sequence[Letter]) -> RenderableType:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("id", "died", "study", "what", "tries", "reason"):
        table.add_column(header, overflow="fold")
    for letter in letters:
        tries = str(len(letter.attempts)) if letter.attempts else ""
        cells = (letter.id, _when(letter.at), letter.study or "", _what(letter), tries, letter.reason)
        table.add_row(*map(words, cells))
    return table


def _details(letter: Letter) -> RenderableType:
    parts: list[RenderableType] = [
        words(f"{letter.id}: {_what(letter)}", style="bold"),
        words(f"died {_when(letter.at) or 'at an unknown time'} on {letter.queue}: {letter.reason}"),
    ]
    if letter.study is not None:
        parts.append(words(f"study {letter.study}, objective {letter.objective}"))
    for one in letter.evaluations:
        where = f"trial {one.trial}, rung {one.rung}, fold {one.fold}, fraction {one.fraction:g}, attempt {one.attempt}"
        parts.append(words(f"  {where}: {one.params}"))
    parts += [words(_tried(attempt)) for attempt in letter.attempts]
    if letter.problem is not None:
        parts += [words(letter.problem), words(f"it begins with: {letter.excerpt}")]
    return Group(*parts)


def _what(letter: Letter) -> str:
    if letter.problem is not None:
        return f"unreadable, {letter.size_bytes} bytes"
    if len(letter.evaluations) == 1:
        return f"trial {letter.evaluations[0].trial}"
    return f"{len(letter.evaluations)} evaluations"


def _tried(attempt: Attempt) -> str:
    return f"  attempt {attempt.attempt}, {_when(attempt.at)}, {attempt.worker or 'an unknown worker'}: {attempt.what}"


def _when(at: float | None) -> str:
    if at is None:
        return ""
    try:
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):  # whoever wrote the letter chose the number
        return f"{at:g} seconds after 1970"
