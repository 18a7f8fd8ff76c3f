"""An evaluation on its way through a slot pool."""

from dataclasses import dataclass

from trialfleet_shared.messages import Evaluation, StudySpec


@dataclass
class Job:
    """An evaluation on its way through the pool."""

    spec: StudySpec
    evaluation: Evaluation
    #: Whether the result cache was asked for it.
    asked_cache: bool = False
    #: How often it was started and lost with its zygote.
    losses: int = 0
