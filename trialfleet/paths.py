"""Paths as the environment's variables name them."""

from pathlib import Path

from trialfleet_shared.errors import ConfigurationError


def named_path(variable: str, value: str) -> Path:
    """The path, with a home folder in place of a ~ that it begins with. Raises ConfigurationError: there is none."""
    try:
        return Path(value).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(
            f"environment: {variable} = {value}: there is no home folder to put in place of ~"
        ) from error
