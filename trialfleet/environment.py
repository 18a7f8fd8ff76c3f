"""What trialfleet reads from the environment, all of it here and strictly.

Each key of [study] and [efficiency] that holds one value can be set as TRIALFLEET_<KEY>, and beside these
TRIALFLEET_HOME, TRIALFLEET_URL (of a coordinator), and TRIALFLEET_BROKER_URL and TRIALFLEET_TOKEN, which are secret and
may be the contents of files: TRIALFLEET_BROKER_URL_FILE, TRIALFLEET_TOKEN_FILE. For https:// there are TRIALFLEET_CA_FILE,
TRIALFLEET_CERTIFICATE_FILE and TRIALFLEET_KEY_FILE (`tls.py`). A variable of that prefix which is none of them is an
error: a program that quietly runs with its defaults because of a typing error is worse than one that stops.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import msgspec

from trialfleet.paths import named_path
from trialfleet.study_file import StudySection
from trialfleet.tls import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.tables import Setting, nearest

PREFIX = "TRIALFLEET_"
HOME = f"{PREFIX}HOME"
BROKER_URL = f"{PREFIX}BROKER_URL"
BROKER_URL_FILE = f"{PREFIX}BROKER_URL_FILE"
URL = f"{PREFIX}URL"
TOKEN = f"{PREFIX}TOKEN"
TOKEN_FILE = f"{PREFIX}TOKEN_FILE"

#: Keys that the environment can not set: what a study is, and what holds more than one value.
_FILE_ONLY = {"objective", "space", "ladder", "points_to_evaluate"}
#: What Kubernetes sets in every container for a service called "trialfleet-…".
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?$")

#: By variable: the section and key that it sets.
VARIABLES: Mapping[str, tuple[str, str]] = {
    f"{PREFIX}{key.upper()}": (section, key)
    for section, table in (("study", StudySection), ("efficiency", EfficiencyConfig))
    for key in table.__struct_fields__
    if key not in _FILE_ONLY
}


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """What the environment says."""

    #: Where studies, results and data are kept.
    home: Path
    #: The broker's URL, which may hold a password: never shown.
    broker_url: str | None
    #: Where a coordinator listens.
    url: str | None
    #: What is shown to a coordinator, or what it wants to be shown: never shown elsewhere.
    token: str | None
    #: Settings of studies, by section.
    settings: dict[str, list[Setting]]

    def __repr__(self) -> str:
        """Without what is secret."""
        return f"Environment(home={self.home})"


def read_environment(variables: Mapping[str, str]) -> Environment:
    """What `variables` say; a variable with an empty value counts as not set.

    Raises:
        ConfigurationError: a variable with our prefix is unknown, the file with a secret can not be read, or the user has
            no home folder where one is needed.
    """
    known = (*VARIABLES, HOME, BROKER_URL, BROKER_URL_FILE, URL, TOKEN, TOKEN_FILE, CA_FILE, CERTIFICATE_FILE, KEY_FILE)
    settings: dict[str, list[Setting]] = {"study": [], "efficiency": []}
    for name, value in variables.items():
        if not name.startswith(PREFIX) or not value or _KUBERNETES.search(name):
            continue
        if name not in known:
            raise ConfigurationError(f"environment: {name}: unknown variable{nearest(name, known)}")
        if name in VARIABLES:
            section, key = VARIABLES[name]
            settings[section].append(Setting(key, value, name, is_text=True))
    return Environment(
        home=default_home(variables),
        broker_url=_secret(variables, BROKER_URL, BROKER_URL_FILE),
        url=variables.get(URL) or None,
        token=_secret(variables, TOKEN, TOKEN_FILE),
        settings=settings,
    )


def default_home(variables: Mapping[str, str]) -> Path:
    """Where studies, results and data are kept.

    TRIALFLEET_HOME, else below the user's folder for data by the XDG base directory specification.

    Raises:
        ConfigurationError: the user that is meant has no home folder.
    """
    if variables.get(HOME):
        return named_path(f"environment: {HOME}", variables[HOME])
    # The specification: a relative path is invalid and to be ignored.
    data = Path(variables.get("XDG_DATA_HOME", ""))
    if not data.is_absolute():
        try:
            data = Path.home() / ".local" / "share"
        except RuntimeError as error:
            raise ConfigurationError(f"this user has no home folder; set {HOME}") from error
    return data / "trialfleet"


def _secret(variables: Mapping[str, str], name: str, file_name: str) -> str | None:
    """The variable `name`, or the content of the file that `file_name` names."""
    value, file = variables.get(name), variables.get(file_name)
    if value and file:
        raise ConfigurationError(f"environment: {name} and {file_name} are both set; keep one")
    if not file:
        return value or None
    try:
        value = named_path(f"environment: {file_name}", file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        words = getattr(error, "strerror", None) or "it is no text"  # which would be shown, and is secret
        raise ConfigurationError(f"environment: {file_name} = {file}: {words}") from error
    if not value:
        raise ConfigurationError(f"environment: {file_name} = {file}: the file is empty")
    return value
