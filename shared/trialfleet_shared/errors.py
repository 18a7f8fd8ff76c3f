"""Every error trialfleet raises on purpose, and what is told of any other.

One root, `TrialfleetError`; a class's docstring is its message when it is raised without one. `exit_status` is what the
command line returns for it: 1 failure, 2 usage or configuration, 3 broker, 4 store.
"""

import inspect

from trialfleet_shared.redaction import without_secrets


class TrialfleetError(Exception):
    """trialfleet failed."""

    exit_status = 1

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.cleandoc(type(self).__doc__ or type(self).__name__))


class ConfigurationError(TrialfleetError, ValueError):
    """A setting, study file or argument is not usable."""

    exit_status = 2


class ObjectiveError(ConfigurationError):
    """The objective can not be loaded or called."""


class TrialPruned(TrialfleetError):  # noqa: N818  # Optuna's name, which objectives raise
    """The objective pruned its trial."""


class DataError(ConfigurationError):
    """The data set can not be read, or is not what the study says of it."""

    def __init__(self, message: str | None = None) -> None:
        # A source may be a URL that is signed.
        super().__init__(message and without_secrets(message))


class StudyChangedError(ConfigurationError):
    """A study of this name exists with another space, objective, direction, data, seed or ladder."""


class UnknownStudyError(ConfigurationError):
    """There is no study of this name."""


class StudyBusyError(TrialfleetError):
    """The study's state does not allow this now."""


class DecodeError(TrialfleetError):
    """A message is not one of ours; `payload` keeps it as it came."""

    def __init__(self, message: str | None = None, *, payload: bytes = b"") -> None:
        super().__init__(message)
        self.payload = payload


class NewerSchemaError(DecodeError):
    """A message is one of a newer trialfleet."""


class StudyFailedError(TrialfleetError):
    """The study could not go on: too many of its trials failed."""


class FleetError(TrialfleetError):
    """The evaluator processes could not be started or kept running."""


class BrokerError(TrialfleetError):
    """The broker can not be reached or refused the connection."""

    exit_status = 3


class StoreError(TrialfleetError):
    """The study store can not be read or written."""

    exit_status = 4


class StoreUnavailableError(StoreError):
    """The store can not be opened by this user, by this version, or at this moment; nothing says that it is damaged."""


class StudyLockedError(StoreError):
    """Another coordinator is running this study."""


def message_of(error: BaseException) -> str:
    """What an exception says; one of the user's may fail to say it."""
    try:
        return str(error)
    except Exception:  # noqa: BLE001  # whatever its `__str__` raises
        return "(its message can not be shown)"
