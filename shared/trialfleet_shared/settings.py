"""`EfficiencyConfig`, the guide's settings, and the presets `fast`, `balanced` and `thorough`.

Each `enable_*` switch turns exactly one mechanism off. Layers (defaults < mode < study file < environment < flags) are
merged as mappings by `layered` and validated once, so that an error can name the key and where its value came from.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, Self

import msgspec

from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.ladder import Ladder, Rung, build_ladder
from trialfleet_shared.messages import MOST_IN_BATCH
from trialfleet_shared.tables import Setting, check_fields, field_types, nearest, read_value, show

#: Preset of settings.
Mode = Literal["fast", "balanced", "thorough"]
MODES: tuple[Mode, ...] = ("fast", "balanced", "thorough")
#: Trials up to which a study's patience is what the mode says; beyond, it grows with them.
PATIENCE_TRIALS = 100


class EfficiencyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How trialfleet saves work. Without arguments: the guide's defaults; see also `fast`, `balanced`, `thorough`.

    Raises:
        ConfigurationError: a value is outside its range; the message names the field, the value and what is allowed.
    """

    #: Evaluate on a share of the rows first; off: every evaluation sees all rows.
    enable_data_subsampling: bool = True
    #: Share of the training rows on rung 0, 0 < f <= 1.
    subsample_fraction: float = 0.3
    #: Promising trials climb the ladder to all rows (asynchronous successive halving). Off: every trial is evaluated
    #: at `subsample_fraction` on all folds, and none sees more.
    adaptive_subsampling: bool = True

    #: Answer repeated evaluations from the persistent result cache.
    enable_caching: bool = True
    #: Entries the result cache keeps at least; the ones used longest ago go first.
    cache_size: int = 1000
    #: Hours after which an entry is no longer used.
    cache_ttl_hours: float = 24.0

    #: Use several slots; off: one.
    enable_parallel_processing: bool = True
    #: Slots, at most the machine's cores; None: as many as cores. Embedded only: fleet workers choose for themselves.
    max_workers: int | None = None
    #: Slots are processes (hard timeout, memory limit, crash isolation); off: threads of this process.
    use_process_pool: bool = True

    #: Prune by the threshold rule.
    enable_aggressive_pruning: bool = True
    #: The rule prunes a trial whose score on a rung is worse than the rung's best by more than the factor
    #: 1 / pruning_threshold, 0 < t < 1: for `maximize` and a positive best, below t x best. See `promotion.py`.
    pruning_threshold: float = 0.1
    #: Scores a rung needs before the rule prunes there.
    min_trials_before_pruning: int = 10

    #: Sample with the tree-structured Parzen estimator; off: uniformly.
    enable_smart_sampling: bool = True
    #: Trials sampled uniformly before the model is trusted.
    warm_start_trials: int = 20
    #: A free slot goes to a promotion before it goes to a new trial; off: to promotions only when no trial is left
    #: to start. A study with a budget of seconds or CPU seconds promotes early in any case.
    adaptive_trial_allocation: bool = True

    #: Slots read the data from one shared memory map and collect garbage; off: each slot loads its own copy.
    enable_memory_optimization: bool = True
    #: Evaluations that travel in one message, at most.
    batch_size: int = 100
    #: A slot collects garbage and returns freed memory to the system after this many evaluations.
    clear_cache_interval: int = 50

    # Fields of trialfleet beyond the guide's.
    #: The ladder itself, when it is not to be built from `subsample_fraction`; the last rung is (1.0, all folds).
    ladder: tuple[Rung, ...] | None = None
    #: eta of successive halving: of each rung, the best 1/eta climb; also the ratio between the rungs' fractions.
    reduction_factor: float = 3.0
    #: Rung 0 may start below `subsample_fraction`, down to this, where it keeps `rung_rows` rows; None: it may not.
    lowest_fraction: float | None = None
    #: Rows that a rung below `subsample_fraction` needs.
    rung_rows: int = 1000
    #: Rows that rung 0 has at least, where there are so many. The modes ask for 500: fits on fewer cost nearly what those on
    #: all rows cost, and rank the trials badly (on 282 rows of real data, half of them: 0.85 of the time, and 0.48 for
    #: Spearman's correlation with all folds, where all rows on one fold give 0.76).
    fewest_rows: int = 100
    #: Halve over folds too: on all rows there are rungs of one and of two folds; off: of all folds alone.
    fold_halving: bool = True
    #: On the last rung, stop a trial that can no longer beat the incumbent on the same folds.
    fold_racing: bool = True
    #: Start no new trials when so many in a row brought nothing better, of a study of 100 trials at most; of a longer one, in
    #: proportion to its trials. None: start all. What `study.patience` says comes first.
    early_stopping_patience: int | None = None

    def __post_init__(self) -> None:
        """Check every type and range; see the class docstring."""
        check_fields(self)
        for name in self.__struct_fields__:
            value = getattr(self, name)
            allowed = out_of_range(name, value)
            if allowed is not None:
                raise ConfigurationError(f"{name} = {show(value)}: {allowed}")
        for name in ("enable_data_subsampling", "adaptive_subsampling"):
            if self.ladder is not None and not getattr(self, name):
                raise ConfigurationError(
                    f"ladder does not go with {name} = false (mode 'thorough' sets it so); set it to true, or leave ladder out"
                )

    @classmethod
    def fast(cls) -> Self:
        """Least time: a small rung 0, a wide threshold."""
        return cls(**PRESETS["fast"])

    @classmethod
    def balanced(cls) -> Self:
        """A fifth of the time at half a percent less of the score, on average (docs/benchmarks.md)."""
        return cls(**PRESETS["balanced"])

    @classmethod
    def thorough(cls) -> Self:
        """The baseline's own answer for less: all rows always; folds, the cache and patience save work."""
        return cls(**PRESETS["thorough"])

    def patience_for(self, trials: int | None) -> int | None:
        """Trials in a row that may bring nothing better before no new ones are started; None: any number.

        Args:
            trials: trials that the study may start; None when only time limits it.
        """
        if self.early_stopping_patience is None or trials is None:
            return None
        return max(self.early_stopping_patience, math.ceil(self.early_stopping_patience * trials / PATIENCE_TRIALS))

    def slots(self, cores: int) -> int:
        """How many slots to run on a machine with `cores` cores."""
        if not self.enable_parallel_processing:
            return 1
        return min(self.max_workers or cores, cores)

    def ladder_for(self, *, rows: int | None, folds: int, has_fidelity: bool, valid_rows: int | None = None) -> Ladder:
        """The ladder of a study.

        Args:
            rows: training rows of fold 0; None when the study has no data set.
            folds: folds of the resampling; 1 without data.
            has_fidelity: whether the objective can use a fraction (it takes `budget`, or `data` of which there are some).
            valid_rows: validation rows of fold 0; None when the study has no data set.
        """
        if not has_fidelity:
            return Ladder((Rung(1.0, folds),))
        if self.enable_data_subsampling and not self.adaptive_subsampling:
            return Ladder((Rung(self.subsample_fraction, folds),))
        if self.enable_data_subsampling and self.ladder is not None:
            if self.ladder[-1] != Rung(1.0, folds):
                raise ConfigurationError(
                    f"ladder: the last rung is {self.ladder[-1]}; it must be all rows on all folds, {Rung(1.0, folds)}"
                )
            return Ladder(self.ladder)
        fraction = self.subsample_fraction if self.enable_data_subsampling else 1.0
        return build_ladder(
            rows=rows if rows is not None else 10**9,
            folds=folds,
            valid_rows=valid_rows,
            fraction=fraction,
            lowest=(self.enable_data_subsampling and self.lowest_fraction) or fraction,
            rung_rows=self.rung_rows,
            fewest_rows=self.fewest_rows,
            reduction_factor=self.reduction_factor,
            fold_halving=self.fold_halving,
        )


#: What each mode sets beyond the defaults.
PRESETS: Mapping[str, dict[str, Any]] = {
    "fast": {
        "subsample_fraction": 0.2,
        "lowest_fraction": 0.1,
        "cache_size": 500,
        "max_workers": 16,
        "pruning_threshold": 0.05,
        "batch_size": 200,
        "fewest_rows": 500,
        "warm_start_trials": 10,
        "early_stopping_patience": 25,
    },
    "balanced": {
        "subsample_fraction": 0.5,
        "lowest_fraction": 0.1,
        "cache_size": 1000,
        "max_workers": 8,
        "pruning_threshold": 0.1,
        "batch_size": 100,
        "fewest_rows": 500,
        "warm_start_trials": 10,
        "early_stopping_patience": 30,
    },
    "thorough": {
        "enable_data_subsampling": False,
        "subsample_fraction": 1.0,
        "adaptive_subsampling": False,
        "cache_size": 2000,
        "max_workers": 4,
        "enable_aggressive_pruning": False,
        "batch_size": 50,
        "reduction_factor": 2.0,
        "warm_start_trials": 10,
        "early_stopping_patience": 33,
    },
}


#: The fields that have a range: when a value is in it, and the range in words.
_RANGES: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    # `build_ladder` rounds fractions to six decimals: below this, or by a smaller factor, neighbouring rungs could be equal.
    "subsample_fraction": (lambda value: 0.0001 <= value <= 1, "0.0001 to 1"),
    "cache_size": (lambda value: 1 <= value <= 10**9, "1 to 1000000000"),
    "cache_ttl_hours": (lambda value: 0 < value <= 10**6, "above 0 and at most 1000000"),
    "max_workers": (lambda value: value is None or value >= 1, "at least 1"),
    "pruning_threshold": (lambda value: 0 < value < 1, "between 0 and 1"),
    "min_trials_before_pruning": (lambda value: value >= 1, "at least 1"),
    "warm_start_trials": (lambda value: value >= 0, "at least 0"),
    "batch_size": (lambda value: 1 <= value <= MOST_IN_BATCH, f"1 to {MOST_IN_BATCH}"),
    "clear_cache_interval": (lambda value: value >= 1, "at least 1"),
    "reduction_factor": (lambda value: 1.1 <= value <= 100, "1.1 to 100"),
    "lowest_fraction": (lambda value: value is None or 0.0001 <= value <= 1, "0.0001 to 1"),
    "early_stopping_patience": (lambda value: value is None or value >= 1, "at least 1"),
    "rung_rows": (lambda value: value >= 1, "at least 1"),
    "fewest_rows": (lambda value: value >= 1, "at least 1"),
}


def out_of_range(name: str, value: Any) -> str | None:
    """What is wrong with `value`, of the right type, as the field `name` of `EfficiencyConfig`; None: nothing."""
    if name == "ladder" and value is not None:
        try:
            Ladder(value)
        except ValueError as error:
            return str(error)
    if name in _RANGES:
        in_range, words = _RANGES[name]
        if not in_range(value):
            return f"allowed is {words}"
    return None


def layered(mode: Mode | None, settings: Iterable[Setting]) -> EfficiencyConfig:
    """The preset of `mode`, or the defaults, overridden by the settings, later ones winning.

    Raises:
        ConfigurationError: an unknown key (with the nearest known one), a wrong type, or a value out of range.
    """
    types = field_types(EfficiencyConfig)
    values: dict[str, Any] = {} if mode is None else dict(PRESETS[mode])
    for setting in settings:
        if setting.key not in types:
            raise ConfigurationError(f"{setting.origin}: unknown key{nearest(setting.key, types)}")
        value = read_value(types[setting.key], setting.value, setting.origin, is_text=setting.is_text)
        allowed = out_of_range(setting.key, value)
        if allowed is not None:
            raise ConfigurationError(f"{setting.origin} = {show(setting.value)}: {allowed}")
        values[setting.key] = value
    return EfficiencyConfig(**values)
