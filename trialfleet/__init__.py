"""trialfleet tunes hyperparameters: on all cores of this machine, or on a fleet of machines.

    import trialfleet

    found = trialfleet.optimize(objective, {"x": {"type": "float", "min": 0, "max": 1}}, n_trials=100)
    print(found["best_params"], found["best_value"])

The names below are the public API; the `trialfleet` command is `trialfleet.cli`. What runs a study is imported when it
is first used, so that importing this package costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

from trialfleet_shared.errors import ConfigurationError as ConfigurationError
from trialfleet_shared.errors import FleetError as FleetError
from trialfleet_shared.errors import StoreError as StoreError
from trialfleet_shared.errors import StudyChangedError as StudyChangedError
from trialfleet_shared.errors import StudyFailedError as StudyFailedError
from trialfleet_shared.errors import TrialfleetError as TrialfleetError
from trialfleet_shared.errors import TrialPruned as TrialPruned
from trialfleet_shared.messages import Resampling as Resampling
from trialfleet_shared.settings import EfficiencyConfig as EfficiencyConfig
from trialfleet_shared.space import Categorical as Categorical
from trialfleet_shared.space import Float as Float
from trialfleet_shared.space import Int as Int

if TYPE_CHECKING:
    from trialfleet.api import EfficiencyOptimizer as EfficiencyOptimizer
    from trialfleet.api import OptimizationResult as OptimizationResult
    from trialfleet.api import create_efficiency_optimizer as create_efficiency_optimizer
    from trialfleet.api import optimize as optimize
    from trialfleet_coordinator.adapters.trialfleet_sampler import TrialfleetSampler as TrialfleetSampler

#: The module of each name that is imported when it is first asked for.
_LAZY = {
    "EfficiencyOptimizer": "trialfleet.api",
    "OptimizationResult": "trialfleet.api",
    "TrialfleetSampler": "trialfleet_coordinator.adapters.trialfleet_sampler",
    "create_efficiency_optimizer": "trialfleet.api",
    "optimize": "trialfleet.api",
}

__all__ = [
    "Categorical",
    "ConfigurationError",
    "EfficiencyConfig",
    "EfficiencyOptimizer",
    "FleetError",
    "Float",
    "Int",
    "OptimizationResult",
    "Resampling",
    "StoreError",
    "StudyChangedError",
    "StudyFailedError",
    "TrialPruned",
    "TrialfleetError",
    "TrialfleetSampler",
    "create_efficiency_optimizer",
    "optimize",
]


def __getattr__(name: str) -> Any:
    """A name whose module is imported now that it is asked for (PEP 562)."""
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    """What the package offers, imported or not."""
    return sorted({*globals(), *__all__})
