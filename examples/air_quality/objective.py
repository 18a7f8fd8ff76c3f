"""Gradient boosting on a made-up series of hourly air quality."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error, r2_score

#: A year and a half.
HOURS = 13_000


def load() -> pd.DataFrame:
    """The same series each time it is called."""
    random = np.random.default_rng(11)
    time = pd.date_range("2020-01-01", periods=HOURS, freq="h")
    hour, day = time.hour.to_numpy(), time.dayofyear.to_numpy()
    season = np.cos(2 * np.pi * (day - 15) / 365)
    # Weather comes in spells: an hour resembles the one before.
    spell = np.zeros(HOURS)
    for index in range(1, HOURS):
        spell[index] = 0.985 * spell[index - 1] + random.normal(0, 0.17)
    temperature = 13 - 14 * season + 4 * np.sin(2 * np.pi * (hour - 9) / 24) + 2 * spell
    wind_speed = np.exp(1.2 - 0.7 * spell + random.normal(0, 0.3, HOURS))
    humidity = np.clip(55 + 18 * spell - 8 * season + random.normal(0, 6, HOURS), 5, 100)
    wind = np.where(spell > 0.4, "calm", np.where(random.random(HOURS) < 0.5, "NW", "SE"))
    traffic = 1 + 0.4 * (np.isin(hour, [7, 8, 17, 18, 19]) & (time.dayofweek.to_numpy() < 5))
    dust = (60 + 45 * season) * traffic * np.exp(0.35 * spell) / np.sqrt(wind_speed)
    dust = dust * np.where(wind == "NW", 0.6, 1.0) * np.exp(random.normal(0, 0.25, HOURS))
    dust[random.random(HOURS) < 0.05] = np.nan  # the instrument fails now and then
    return pd.DataFrame(
        {
            "time": time,
            "hour": hour,
            "weekday": time.dayofweek.to_numpy(),
            "month": time.month.to_numpy(),
            "temperature": temperature.round(1),
            "humidity": humidity.round(),
            "wind": wind,
            "wind_speed": wind_speed.round(2),
            "pm25": dust.round(1),
        }
    )


def train(params: dict[str, Any], data: Any) -> dict[str, float]:
    """Mean absolute error on the fold's validation part, which lies after its training part; R² beside it.

    The time itself is no feature: it only says which rows come first.
    """
    model = HistGradientBoostingRegressor(
        **params, categorical_features="from_dtype", early_stopping=False, random_state=data.seed
    )
    model.fit(data.frame.drop(columns="time"), data.y)
    forecast = model.predict(data.frame_valid.drop(columns="time"))
    return {
        "value": float(mean_absolute_error(data.y_valid, forecast)),
        "r2": float(r2_score(data.y_valid, forecast)),
    }
