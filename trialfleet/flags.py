"""What the flags of a command say of a study, as one more layer of settings."""

import msgspec

from trialfleet.environment import Environment
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.messages import StudyName
from trialfleet_shared.settings import Mode
from trialfleet_shared.tables import Setting, read_value


class StudyFlags(msgspec.Struct, frozen=True, kw_only=True):
    """What the flags of `run`, `up` and `submit` say of a study."""

    mode: Mode | None
    trials: str | None
    seconds: str | None
    name: str | None
    seed: str | None
    slots: str | None
    settings: tuple[str, ...]
    fork: str | None
    warm_start: str | None

    def layered(self, environment: Environment) -> dict[str, list[Setting]]:
        """The environment's settings with the flags over them. Raises ConfigurationError when a flag says what can not be."""
        settings = {section: list(values) for section, values in environment.settings.items()}
        for key in ("mode", "trials", "seconds", "name", "seed"):
            value = getattr(self, key)
            if value is not None:
                settings["study"].append(Setting(key, value, f"--{key}", is_text=True))
        if self.slots is not None:
            settings["efficiency"].append(Setting("max_workers", self.slots, "--slots", is_text=True))
        for text in self.settings:
            place, equals, value = text.partition("=")
            section, dot, key = place.partition(".")
            if not equals or not dot or section not in ("study", "data", "resampling", "efficiency"):
                raise ConfigurationError(
                    f"--set {text}: allowed is SECTION.KEY=VALUE with a section study, data, resampling or efficiency"
                )
            settings.setdefault(section, []).append(Setting(key, value, f"--set {place}", is_text=True))
        if self.fork is not None:
            read_value(StudyName, self.fork, "--fork", is_text=True)
        return settings
