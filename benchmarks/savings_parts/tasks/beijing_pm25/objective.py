"""Gradient boosting on UCI Beijing PM2.5: the fine dust of an hour from weather and calendar."""

from typing import Any

from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.metrics import mean_absolute_error


def train(params: dict[str, Any], data: Any) -> float:
    """Mean absolute error in µg/m³ on the fold's validation part, which lies after its training part.

    The number of the row only says which rows come first.
    """
    model = HistGradientBoostingRegressor(
        **params, categorical_features="from_dtype", early_stopping=False, random_state=data.seed
    )
    model.fit(data.frame.drop(columns=["No", "year"]), data.y)
    forecast = model.predict(data.frame_valid.drop(columns=["No", "year"]))
    return float(mean_absolute_error(data.y_valid, forecast))
