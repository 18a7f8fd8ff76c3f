"""EfficiencyConfig: the guide's table, ranges, and slots."""

import re
from typing import Any

import pytest

from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.ladder import Rung
from trialfleet_shared.settings import MODES, PRESETS, EfficiencyConfig, layered
from trialfleet_shared.tables import Setting

#: The guide's table: field, default, fast, balanced, thorough; None in a mode's column: as the default.
GUIDE: list[tuple[str, Any, Any, Any, Any]] = [
    ("enable_data_subsampling", True, True, True, False),
    ("subsample_fraction", 0.3, 0.2, 0.5, 1.0),
    ("adaptive_subsampling", True, True, True, False),
    ("enable_caching", True, None, None, None),
    ("cache_size", 1000, 500, 1000, 2000),
    ("cache_ttl_hours", 24, None, None, None),
    ("enable_parallel_processing", True, None, None, None),
    ("max_workers", None, 16, 8, 4),
    ("use_process_pool", True, None, None, None),
    ("enable_aggressive_pruning", True, True, True, False),
    ("pruning_threshold", 0.1, 0.05, 0.1, None),
    ("min_trials_before_pruning", 10, None, None, None),
    ("enable_smart_sampling", True, None, None, None),
    ("warm_start_trials", 20, 10, 10, 10),  # the guide has 20 in the modes too: decision 26
    ("adaptive_trial_allocation", True, None, None, None),
    ("enable_memory_optimization", True, None, None, None),
    ("batch_size", 100, 200, 100, 50),
    ("clear_cache_interval", 50, None, None, None),
]


@pytest.mark.parametrize(("field", "default", "fast", "balanced", "thorough"), GUIDE)
def test_presets_are_the_guides(field: str, default: Any, fast: Any, balanced: Any, thorough: Any) -> None:
    assert getattr(EfficiencyConfig(), field) == default
    for config, expected in (
        (EfficiencyConfig.fast(), fast),
        (EfficiencyConfig.balanced(), balanced),
        (EfficiencyConfig.thorough(), thorough),
    ):
        assert getattr(config, field) == (default if expected is None else expected)


def test_racing_is_on_in_every_mode() -> None:
    assert EfficiencyConfig().fold_racing
    assert all(layered(mode, []).fold_racing for mode in MODES)


@pytest.mark.parametrize("mode", MODES)
def test_layering_nothing_gives_the_preset(mode: Any) -> None:
    assert layered(mode, []) == EfficiencyConfig(**PRESETS[mode])


def test_patience_grows_with_the_trials_of_a_long_study() -> None:
    assert [EfficiencyConfig.fast().patience_for(trials) for trials in (10, 100, 101, 1000)] == [25, 25, 26, 250]
    assert [EfficiencyConfig.balanced().patience_for(trials) for trials in (10, 100, 1000)] == [30, 30, 300]
    assert [EfficiencyConfig.thorough().patience_for(trials) for trials in (10, 100, 1000)] == [33, 33, 330]


def test_whoever_asks_for_all_trials_gets_them() -> None:
    assert EfficiencyConfig().patience_for(100) is None
    assert EfficiencyConfig.fast().patience_for(None) is None, "time alone limits the study"


def test_slots_are_capped_at_the_cores() -> None:
    assert EfficiencyConfig().slots(6) == 6
    assert EfficiencyConfig(max_workers=16).slots(6) == 6
    assert EfficiencyConfig(max_workers=2).slots(6) == 2
    assert EfficiencyConfig(enable_parallel_processing=False).slots(6) == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("subsample_fraction", 0.0, "subsample_fraction = 0.0: allowed is 0.0001 to 1"),
        ("subsample_fraction", float("nan"), "subsample_fraction = nan: allowed is 0.0001 to 1"),
        ("subsample_fraction", 1e-9, "subsample_fraction = 1e-09: allowed is 0.0001 to 1"),
        ("cache_size", 0, "cache_size = 0: allowed is 1 to 1000000000"),
        ("cache_ttl_hours", float("inf"), "cache_ttl_hours = inf: allowed is above 0 and at most 1000000"),
        ("cache_ttl_hours", 1e10, "cache_ttl_hours = 10000000000.0: allowed is above 0 and at most 1000000"),
        ("max_workers", 0, "max_workers = 0: allowed is at least 1"),
        ("max_workers", "4", 'max_workers = "4": expected int, got str'),
        ("pruning_threshold", 1.0, "pruning_threshold = 1.0: allowed is between 0 and 1"),
        ("min_trials_before_pruning", 0, "min_trials_before_pruning = 0: allowed is at least 1"),
        ("warm_start_trials", -1, "warm_start_trials = -1: allowed is at least 0"),
        ("batch_size", 10_001, "batch_size = 10001: allowed is 1 to 10000"),
        ("clear_cache_interval", 0, "clear_cache_interval = 0: allowed is at least 1"),
        ("reduction_factor", 1.0, "reduction_factor = 1.0: allowed is 1.1 to 100"),
        ("reduction_factor", 1.0001, "reduction_factor = 1.0001: allowed is 1.1 to 100"),
        ("lowest_fraction", 1.5, "lowest_fraction = 1.5: allowed is 0.0001 to 1"),
        ("early_stopping_patience", 0, "early_stopping_patience = 0: allowed is at least 1"),
        ("rung_rows", 0, "rung_rows = 0: allowed is at least 1"),
        ("enable_caching", 1, "enable_caching = 1: expected bool, got int"),
        ("ladder", (), "ladder = []: a ladder needs at least one rung"),
    ],
)
def test_a_bad_value_is_named_with_what_is_allowed(field: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^{re.escape(message)}$"):
        EfficiencyConfig(**{field: value})
    with pytest.raises(ConfigurationError, match=f"^here{re.escape(message.removeprefix(field))}$"):
        layered("balanced", [Setting(field, value, "here")])


@pytest.mark.parametrize("switch", ["enable_data_subsampling", "adaptive_subsampling"])
def test_a_ladder_that_would_not_be_climbed_is_refused(switch: str) -> None:
    ladder = (Rung(0.5, 1), Rung(1.0, 1))
    with pytest.raises(
        ConfigurationError, match=f"ladder does not go with {switch} = false .*; set it to true, or leave"
    ):
        EfficiencyConfig(ladder=ladder, **{switch: False})  # type: ignore[arg-type]
    own = Setting("ladder", [{"fraction": 1.0, "folds": 1}], "here")
    with pytest.raises(ConfigurationError, match="mode 'thorough' sets it so"):
        layered("thorough", [own])


def test_text_becomes_numbers_and_booleans() -> None:
    config = layered(
        "balanced",
        [
            Setting("enable_caching", "false", "TRIALFLEET_ENABLE_CACHING", is_text=True),
            Setting("cache_ttl_hours", "1.5", "TRIALFLEET_CACHE_TTL_HOURS", is_text=True),
            Setting("max_workers", "3", "TRIALFLEET_MAX_WORKERS", is_text=True),
        ],
    )

    assert (config.enable_caching, config.cache_ttl_hours, config.max_workers) == (False, 1.5, 3)
