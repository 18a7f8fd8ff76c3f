"""A pipeline on Wisconsin breast cancer: scaled features, then logistic regression or a support vector machine."""

from typing import Any

from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import RobustScaler, StandardScaler
from sklearn.svm import SVC


def train(params: dict[str, Any], data: Any) -> float:
    """Area under the ROC curve on the fold's validation part."""
    scaler = StandardScaler() if params["scaler"] == "standard" else RobustScaler()
    if params["model"] == "logistic":
        classifier = LogisticRegression(C=params["C"], max_iter=1000)
    else:
        classifier = SVC(C=params["C"], gamma=params["gamma"])
    model = make_pipeline(scaler, classifier)
    model.fit(data.X, data.y)
    return float(roc_auc_score(data.y_valid, model.decision_function(data.X_valid)))
