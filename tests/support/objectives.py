"""Objectives that tests name as files, as users do."""

import asyncio
import ctypes
import os
import time
from typing import Any


class TrialPruned(Exception):  # noqa: N818  # as Optuna calls it
    """As Optuna's, which is told by its name."""


def double(params: dict[str, Any]) -> dict[str, float]:
    return {"value": 2.0 * params["x"], "x": params["x"]}


async def double_later(params: dict[str, Any]) -> float:
    await asyncio.sleep(0)
    return 2.0 * float(params["x"])


def misbehave(params: dict[str, Any], budget: float = 1.0) -> Any:
    """Do what the params say."""
    match params["what"]:
        case "return":
            return params["x"]
        case "budget":
            return budget
        case "nan":
            return float("nan")
        case "none":
            return None
        case "raise":
            raise ValueError("bad luck")
        case "prune":
            raise TrialPruned("not promising")
        case "sleep":
            time.sleep(params["seconds"])
            return params["seconds"]
        case "exit":
            os._exit(3)
        case "segfault":
            return ctypes.string_at(0)
    return None
