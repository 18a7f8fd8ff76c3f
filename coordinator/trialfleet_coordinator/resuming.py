"""Trials as an earlier session left them, from the study's record.

Where an undecided trial stands follows from its results: it waits where they finish the highest rung they are of, and else
its evaluations are published again. Who has no results yet is put where trials of its number start by now
(`Standings.restore`). A decided one stands on the highest rung of its results, the lowest where it has none, also if it
was decided before a higher rung brought any, lost with its workers time and again, say.
"""

from trialfleet_coordinator.commands import TrialState
from trialfleet_coordinator.ports import TrialRecord
from trialfleet_coordinator.promotion import mean
from trialfleet_coordinator.trial import DECIDED, Phase, Trial
from trialfleet_shared.ladder import Ladder
from trialfleet_shared.messages import TEST_FOLD, Outcome

#: The phases in which a trial is decided, by Optuna's names.
_PHASES: dict[TrialState, Phase] = {state: phase for phase, state in DECIDED.items()}


def restored_trial(entry: TrialRecord, ladder: Ladder) -> Trial:
    """The trial that the record tells of."""
    trial = Trial(entry.number, entry.params, entry.distributions)
    for result in entry.results:
        trial.results.append(result)
        if result.fold == TEST_FOLD:
            continue
        trial.rung = max(trial.rung, result.rung)
        if result.outcome is Outcome.OK and result.value is not None:
            trial.values[ladder.rungs[result.rung].fraction, result.fold] = result.value
    if entry.state.decided:
        trial.phase, trial.value, trial.reason = _PHASES[entry.state], entry.value, entry.reason
        if entry.reason == "racing":
            trial.rung = ladder.last  # which it may have reached by values of the rung below alone
        return trial
    finished = trial.finished(ladder)
    if finished:
        trial.value = mean(trial.fold_values(ladder, finished[-1]))
        if finished[-1] == trial.rung:
            trial.phase = Phase.WAITING
    return trial
