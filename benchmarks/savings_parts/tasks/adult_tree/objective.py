"""One decision tree on UCI Adult: who earns more than 50,000 a year?"""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score
from sklearn.tree import DecisionTreeClassifier


def train(params: dict[str, Any], data: Any) -> float:
    """Area under the ROC curve on the fold's validation part."""
    model = DecisionTreeClassifier(**params, random_state=data.seed)
    model.fit(_numbers(data.frame), data.y)
    return float(roc_auc_score(data.y_valid, model.predict_proba(_numbers(data.frame_valid))[:, 1]))


def _numbers(frame: pd.DataFrame) -> np.ndarray:
    """Each text as the place of its label in sorted order, a missing one as -1."""
    columns = []
    for name in frame.columns:
        column = frame[name]
        if isinstance(column.dtype, pd.CategoricalDtype):
            places = np.append(np.argsort(np.argsort(column.cat.categories)), -1)
            columns.append(places[column.cat.codes])
        else:
            columns.append(column.to_numpy())
    return np.column_stack(columns).astype(np.float32)
