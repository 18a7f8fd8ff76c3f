"""A support vector machine on principal components of scikit-learn's handwritten digits."""

from typing import Any

import numpy as np
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def load() -> tuple[np.ndarray, np.ndarray]:
    """The images as rows of pixels, and their digits. Called once; the data then stay in trialfleet's cache."""
    x, y = load_digits(return_X_y=True)
    return x.astype(np.float32), y


def train(params: dict[str, Any], data: Any) -> float:
    """Accuracy on the fold's validation part.

    Called with one set of parameters and one fold: `data.X` and `data.y` are the training rows that this evaluation may
    see (a share of them, or all), `data.X_valid` and `data.y_valid` the validation rows.
    """
    model = make_pipeline(
        StandardScaler(),
        PCA(params["components"], random_state=data.seed),
        SVC(kernel=params["kernel"], C=params["C"], gamma=params["gamma"], degree=params.get("degree", 3)),
    )
    model.fit(data.X, data.y)
    return float(model.score(data.X_valid, data.y_valid))
