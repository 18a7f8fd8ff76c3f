"""Gradient boosting on a made-up census: numbers, text and missing cells."""

from typing import Any

import numpy as np
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import log_loss, roc_auc_score

#: People in the census.
ROWS = 12_000

EDUCATION = ["HS-grad", "Some-college", "Bachelors", "Masters", "Doctorate", "11th"]
SCHOOL_YEARS = dict(zip(EDUCATION, [9, 10, 13, 14, 16, 7], strict=True))
OCCUPATION = ["Sales", "Craft-repair", "Exec-managerial", "Tech-support", "Other-service", "Farming-fishing"]
PAY = dict(zip(OCCUPATION, [0.1, 0.0, 1.1, 0.6, -1.0, -0.7], strict=True))
WORKCLASS = ["Private", "Self-emp-inc", "Self-emp-not-inc", "State-gov"]


def load() -> pd.DataFrame:
    """The same census each time it is called."""
    random = np.random.default_rng(7)
    people = pd.DataFrame(
        {
            "age": random.integers(17, 91, ROWS),
            "workclass": random.choice(WORKCLASS, ROWS, p=[0.72, 0.06, 0.1, 0.12]),
            "education": random.choice(EDUCATION, ROWS, p=[0.34, 0.24, 0.22, 0.09, 0.03, 0.08]),
            "occupation": random.choice(OCCUPATION, ROWS),
            "married": random.choice(["yes", "no"], ROWS),
            "hours_per_week": np.clip(random.normal(40, 12, ROWS), 1, 99).round(),
            "capital_gain": np.where(random.random(ROWS) < 0.08, random.gamma(2.0, 4000.0, ROWS), 0.0).round(),
        }
    )
    score = (
        0.32 * (people["education"].map(SCHOOL_YEARS) - 10)
        + people["occupation"].map(PAY)
        + np.where(people["married"] == "yes", 1.3, -0.6)
        - ((people["age"] - 48) / 18) ** 2
        + 0.035 * (people["hours_per_week"] - 40)
        + np.where(people["capital_gain"] > 6000, 3.0, 0.0)
        + np.where((people["workclass"] == "Self-emp-inc") & (people["age"] > 35), 1.0, 0.0)
    )
    chance = 1 / (1 + np.exp(-(score - 0.9)))
    people["income"] = np.where(random.random(ROWS) < chance, ">50K", "<=50K")
    # People do not always answer.
    for column in ("workclass", "occupation", "hours_per_week"):
        people.loc[random.random(ROWS) < 0.06, column] = None
    return people


def train(params: dict[str, Any], data: Any) -> dict[str, float]:
    """Area under the ROC curve on the fold's validation part, and the log loss beside it.

    `data.frame` and `data.frame_valid` are pandas frames of the features: text columns are categorical, missing cells
    are missing. Gradient boosting takes both as they are. `data.y` holds the target's classes.
    """
    model = HistGradientBoostingClassifier(
        **params, categorical_features="from_dtype", early_stopping=False, random_state=data.seed
    )
    model.fit(data.frame, data.y)
    chances = model.predict_proba(data.frame_valid)
    return {
        "value": float(roc_auc_score(data.y_valid, chances[:, 1])),
        "log_loss": float(log_loss(data.y_valid, chances)),
    }
