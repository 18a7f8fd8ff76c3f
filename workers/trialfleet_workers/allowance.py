"""Which objectives a worker runs: those below allowed folders, and those of modules it was told of; nothing else.

A message names an objective as the coordinator sees it. The worker looks for its own copy, and runs it only when its
code is the study's: a message can choose among the functions that are here, never bring one.
"""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from trialfleet_shared.errors import ObjectiveError
from trialfleet_workers.digests import code_digest
from trialfleet_workers.objective import parse_reference
from trialfleet_workers.user_modules import is_file

#: Characters of a digest that messages show.
_SHOWN = 8


class Allowance(NamedTuple):
    """What a worker may run."""

    #: Folders; every .py file below them is allowed.
    folders: tuple[Path, ...]
    #: Modules ("package", with everything in it, or "package.module"), wherever they are installed.
    modules: tuple[str, ...] = ()


class Found(NamedTuple):
    """An objective that may run here."""

    reference: str
    #: Folder that the reference is relative to.
    base: Path


def resolve(reference: str, digest: str, base: Path, allowance: Allowance | None) -> Found:
    """This machine's copy of the objective.

    A file is looked for as given below each allowed folder, then by shorter and shorter tails of its path, since the
    coordinator may have started elsewhere; the first copy whose code is the study's is taken.

    Args:
        reference: the objective as the study names it.
        digest: what `code_digest` must be.
        base: folder that modules and files are relative to when everything is allowed.
        allowance: what may run; None: everything.

    Raises:
        ObjectiveError: it is not allowed, not here, can not be read, or other code.
    """
    problems = []
    for candidate in _candidates_or_refusal(reference, base, allowance):
        try:
            mine = code_digest(*candidate)
        except ObjectiveError as error:
            problems.append(error)
            continue
        if mine == digest:
            return candidate
        found = parse_reference(candidate[0])
        where = f"in {candidate[1] / found.place}" if found.is_file else "here"
        problems.append(
            ObjectiveError(
                f"the code of objective {reference!r} is {mine[:_SHOWN]} {where} and {digest[:_SHOWN]} in the study; "
                "update the worker's copy, or the study's"
            )
        )
    raise problems[0]


def find(reference: str, base: Path, allowance: Allowance) -> Found:
    """This machine's copy of a function whose code the study has no digest of: one that gives data.

    Raises:
        ObjectiveError: it is not allowed, or not here.
    """
    return _candidates_or_refusal(reference, base, allowance)[0]


def require_allowed(reference: str, base: Path, allowance: Allowance) -> None:
    """See that a function may run here, as it stands: not another copy of it.

    Raises:
        ObjectiveError: it may not, or is not here.
    """
    place, _ = parse_reference(reference)
    if place.endswith(".py"):
        allowed = any(_is_below(base / place, folder) for folder in allowance.folders)
    else:
        found = _candidates(reference, base, Allowance((base,), allowance.modules))
        folders = [folder.resolve() for folder in allowance.folders]
        allowed = _is_allowed_module(place, allowance) or (
            any(base.resolve().is_relative_to(folder) for folder in folders) and next(found, None) is not None
        )
    if not allowed:
        raise _refusal(reference, allowance)


def _candidates_or_refusal(reference: str, base: Path, allowance: Allowance | None) -> list[Found]:
    """Where the function may be, at least one place. Raises ObjectiveError when there is none."""
    candidates = [Found(reference, base)] if allowance is None else list(_candidates(reference, base, allowance))
    if not candidates:
        assert allowance is not None
        raise _refusal(reference, allowance)
    return candidates


def _refusal(reference: str, allowance: Allowance) -> ObjectiveError:
    folders = ", ".join(map(str, allowance.folders)) or "none"
    modules = ", ".join(allowance.modules) or "none"
    return ObjectiveError(
        f"objective {reference!r} is not allowed here; allowed are files below {folders} and modules {modules}"
    )


def _candidates(reference: str, base: Path, allowance: Allowance) -> Iterator[Found]:
    place, attribute = parse_reference(reference)
    if not place.endswith(".py"):
        if _is_allowed_module(place, allowance):
            yield Found(reference, base)
        parts = place.split(".")
        for folder in allowance.folders:
            file = folder.joinpath(*parts)
            if _is_below(file.with_suffix(".py"), folder) or _is_below(file / "__init__.py", folder):
                yield Found(reference, folder)
        return
    parts = [part for part in PurePosixPath(place).parts if part != "/"]
    for start in range(len(parts)):
        tail = parts[start:]
        if ".." in tail:
            continue
        for folder in allowance.folders:
            if _is_below(folder.joinpath(*tail), folder):
                yield Found(f"{'/'.join(tail)}:{attribute}", folder)


def _is_allowed_module(place: str, allowance: Allowance) -> bool:
    return any(place == module or place.startswith(f"{module}.") for module in allowance.modules)


def _is_below(file: Path, folder: Path) -> bool:
    """Whether the file is there and, links followed, in the folder."""
    return is_file(file) and file.resolve().is_relative_to(folder.resolve())
