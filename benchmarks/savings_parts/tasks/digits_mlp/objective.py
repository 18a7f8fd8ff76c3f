"""A small neural network on handwritten digits."""

import warnings
from typing import Any

from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# Epochs are a parameter here; that they do not end in convergence is expected.
warnings.simplefilter("ignore", ConvergenceWarning)


def train(params: dict[str, Any], data: Any) -> float:
    """Accuracy on the fold's validation part."""
    model = make_pipeline(
        StandardScaler(),
        MLPClassifier(
            hidden_layer_sizes=(params["width"],) * params["layers"],
            activation=params["activation"],
            alpha=params["alpha"],
            learning_rate_init=params["learning_rate"],
            batch_size=min(params["batch_size"], len(data.y)),
            max_iter=params["epochs"],
            random_state=data.seed,
        ),
    )
    model.fit(data.X, data.y)
    return float(model.score(data.X_valid, data.y_valid))
