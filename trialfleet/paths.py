"""Paths as users write them."""

from pathlib import Path

from trialfleet_shared.errors import ConfigurationError


def named_path(origin: str, value: str | Path) -> Path:
    """The path, with a home folder in place of a ~ that it begins with.

    Args:
        origin: where it is given, for the error.
        value: the path.

    Raises:
        ConfigurationError: it is no path, or there is no such home folder.
    """
    try:
        return Path(value).expanduser()
    except TypeError as error:
        raise ConfigurationError(f"{origin} = {value!r}: expected a path") from error
    except RuntimeError as error:
        raise ConfigurationError(f"{origin} = {value}: there is no home folder to put in place of ~") from error
