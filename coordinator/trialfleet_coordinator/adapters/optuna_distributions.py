"""Our distributions as Optuna's and back."""

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from trialfleet_shared.space import Categorical, Distribution, Float, Int, Scalar


def to_optuna(distribution: Distribution) -> BaseDistribution:
    """The Optuna distribution with the same values. Conditions are not part of it."""
    match distribution:
        case Float():
            # `high` rather than `max`: Optuna would warn, and move it itself, where the step does not divide the range.
            return FloatDistribution(distribution.min, distribution.high, log=distribution.log, step=distribution.step)
        case Int():
            return IntDistribution(
                distribution.min,
                distribution.high,
                log=distribution.log,
                step=1 if distribution.log else distribution.step,
            )
        case Categorical():
            return CategoricalDistribution(tuple(distribution.choices))


def from_optuna(distribution: BaseDistribution) -> Distribution:
    """Our distribution with the same values. Raises TypeError for a kind that Optuna no longer makes."""
    match distribution:
        case FloatDistribution():
            return Float(distribution.low, distribution.high, distribution.step, distribution.log)
        case IntDistribution():
            return Int(distribution.low, distribution.high, distribution.step, distribution.log)
        case CategoricalDistribution():
            return Categorical(list(distribution.choices))
    raise TypeError(f"unknown distribution {distribution!r}")


def equal_choices(distribution: BaseDistribution | Distribution) -> str:
    """Which choices Optuna takes for one, as Python does: True and 1, say; empty where there are none."""
    if not isinstance(distribution, CategoricalDistribution | Categorical):
        return ""
    first: dict[Scalar, Scalar] = {}
    for choice in distribution.choices:
        if choice in first:
            return f"{first[choice]!r} and {choice!r}"
        first[choice] = choice
    return ""
