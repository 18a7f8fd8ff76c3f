"""fleet.toml: how a coordinator that serves many studies is set up."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from trialfleet.coordinator_files import COORDINATOR_PORT
from trialfleet.study_file import read_toml
from trialfleet.tls import check_server_files
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.tables import nearest, read_table

#: Tables of a fleet file.
SECTIONS = ("coordinator",)


class CoordinatorSection(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """[coordinator]."""

    #: Address to listen on.
    host: Annotated[str, Meta(min_length=1, max_length=255)] = "127.0.0.1"
    #: Port to listen on; 0: any that is free.
    port: Annotated[int, Meta(ge=0, le=65535)] = COORDINATOR_PORT
    #: Certificate and key of the HTTP side, PEM files, relative to the file; None: it speaks HTTP without TLS.
    tls_certificate: str | None = None
    tls_key: str | None = None
    #: Certificates of the authority that whoever speaks to it has to show one of; None: nobody has to.
    tls_client_ca: str | None = None
    #: Studies that run at the same time; the others are queued.
    most_running: Annotated[int, Meta(ge=1, le=1000)] = 16
    #: Folders whose objectives may be submitted, relative to the file; none given: the folder of the file.
    objective_paths: tuple[str, ...] = ()
    #: Modules whose objectives may be submitted.
    objectives: tuple[str, ...] = ()


def load_fleet(path: Path | None) -> CoordinatorSection:
    """What the file at `path` says, with the folders in it as whole paths; without a file, the defaults.

    Raises:
        ConfigurationError: the file can not be read, or holds what it may not; one line that names the key, the value
            and what is allowed.
    """
    tables = {} if path is None else read_toml(path)
    for table in tables:
        if table not in SECTIONS:
            raise ConfigurationError(f"{path}: {table}: unknown table or key{nearest(table, SECTIONS)}")
    section = read_table(CoordinatorSection, tables.get("coordinator", {}), str(path), prefix="coordinator.")
    base = Path.cwd() if path is None else path.resolve().parent
    folders = section.objective_paths or (() if section.objectives else (".",))
    for folder in folders:
        if not (base / folder).is_dir():
            raise ConfigurationError(f"{path}: coordinator.objective_paths: {base / folder} is no folder")
    return msgspec.structs.replace(
        section,
        objective_paths=tuple(str((base / folder).resolve()) for folder in folders),
        **_tls_files(section, base, path),
    )


def _tls_files(section: CoordinatorSection, base: Path, path: Path | None) -> dict[str, str]:
    """Those that are given, as whole paths."""
    names = ("tls_certificate", "tls_key", "tls_client_ca")
    files = {name: base / given for name in names if (given := getattr(section, name)) is not None}
    if not files:
        return {}
    for name in names[:2]:
        if name not in files:
            raise ConfigurationError(f"{path}: coordinator.{name} is missing beside coordinator.{next(iter(files))}")
    try:
        check_server_files(files["tls_certificate"], files["tls_key"], files.get("tls_client_ca"))
    except ConfigurationError as error:
        raise ConfigurationError(f"{path}: coordinator: {error}") from error
    return {name: str(file) for name, file in files.items()}
