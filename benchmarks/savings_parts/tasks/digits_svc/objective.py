"""A support vector machine on principal components of handwritten digits."""

from typing import Any

from sklearn.decomposition import PCA
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC


def train(params: dict[str, Any], data: Any) -> float:
    """Accuracy on the fold's validation part."""
    model = make_pipeline(
        StandardScaler(),
        PCA(params["components"], random_state=data.seed),
        SVC(kernel=params["kernel"], C=params["C"], gamma=params["gamma"], degree=params.get("degree", 3)),
    )
    model.fit(data.X, data.y)
    return float(model.score(data.X_valid, data.y_valid))
