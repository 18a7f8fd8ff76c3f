"""Gradient boosting on UCI Adult: who earns more than 50,000 a year?"""

from typing import Any

from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score


def train(params: dict[str, Any], data: Any) -> float:
    """Area under the ROC curve on the fold's validation part."""
    model = HistGradientBoostingClassifier(
        **params, categorical_features="from_dtype", early_stopping=False, random_state=data.seed
    )
    model.fit(data.frame, data.y)
    return float(roc_auc_score(data.y_valid, model.predict_proba(data.frame_valid)[:, 1]))
