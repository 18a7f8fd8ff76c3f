"""A random forest on the diabetes data: how far the illness goes within a year."""

from typing import Any

from sklearn.ensemble import RandomForestRegressor
from sklearn.metrics import mean_absolute_error


def train(params: dict[str, Any], data: Any) -> float:
    """Mean absolute error on the fold's validation part."""
    model = RandomForestRegressor(**params, random_state=data.seed, n_jobs=1)
    model.fit(data.X, data.y)
    return float(mean_absolute_error(data.y_valid, model.predict(data.X_valid)))
