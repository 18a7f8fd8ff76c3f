"""How studies lie in LMDB: the tables that `lmdb_storage` (Optuna's view) and `lmdb_store` (the coordinator's) share.

Numbers in keys are big-endian, so that keys sort like the numbers; `study` takes 8 bytes, `number` and the others 4.

    studies      study                          -> name, directions
    names        digest of the name             -> study
    attrs        study, kind, digest of the key -> key, value
    parameters   study, digest of the name      -> distribution (Optuna's JSON) the parameter was last suggested from
    spaces       study, digest of the space     -> the distributions of a trial; trials share what is equal
    trials       study, number                  -> `TrialRow`
    evaluations  study, number, rung, fold + 1  -> `EvaluationRow`
    progress     study                          -> `ProgressRow`
    meta         "next study"                   -> the id of the next study; ids are never used twice
                 "identity"                     -> random bytes that no other store has

Values are MessagePack, and end with a checksum (4 bytes): CRC-32 of table, key and value, so that a flipped bit, or a
value that stands in another's place, is told as damage (StoreError), never taken for what was written. Attributes are
JSON text as in Optuna's own databases, so that the same values can be kept. A study's id and a trial's number make its
Optuna id, `study << 32 | number`, so no index is needed.
"""

import json
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from trialfleet_shared.adapters.lmdb_environment import LmdbEnvironment, Transaction
from trialfleet_shared.errors import StoreError
from trialfleet_shared.messages import EvaluationResult
from trialfleet_shared.space import Categorical, Distribution, Float, Int

if TYPE_CHECKING:  # imported where Optuna's words are asked for: it takes a quarter of a second
    from optuna.distributions import BaseDistribution

#: What the environment holds; the number goes up when an older trialfleet could misread it.
LAYOUT = "study store 2"
#: Earlier ones: without checksums.
LAYOUT_1 = "study store 1"
DATABASES = ("studies", "names", "attrs", "parameters", "spaces", "trials", "evaluations", "progress")
#: Address space to begin with, in bytes; it grows.
MAP_BYTES = 256 * 2**20
#: Kinds of attributes of a study.
USER, SYSTEM = b"u", b"s"

_STUDY = struct.Struct(">Q")
_TRIAL = struct.Struct(">QI")
_EVALUATION = struct.Struct(">QIII")
_DIGEST_BYTES, _CHECKSUM_BYTES = 16, 4
#: First byte of a space: whose distributions follow.
_OURS, _OPTUNAS = b"t", b"o"


class StudyRow(msgspec.Struct, frozen=True, array_like=True):
    """A study; directions are values of `optuna.study.StudyDirection`."""

    name: str
    directions: list[int]


class TrialRow(msgspec.Struct, array_like=True, kw_only=True):
    """A trial."""

    #: Value of `optuna.trial.TrialState`.
    state: int
    #: Seconds since 1970 that it was started at, and finished at.
    started: float | None = None
    finished: float | None = None
    values: list[float] | None = None
    intermediate: dict[int, float] = {}
    #: Digest of its space; empty while it has no parameters.
    space: bytes = b""
    #: The parameters' internal representations (Optuna's word), in the order of the space.
    internal: list[float] = []
    #: Attributes as JSON text; empty for none.
    user: str = ""
    system: str = ""


class EvaluationRow(msgspec.Struct, frozen=True, array_like=True):
    """A result that counted. Made by `of`, read by `taken`."""

    #: Its place among the study's results.
    place: int
    #: Without what stands below: an older trialfleet reads the first two fields, and nothing else.
    result: EvaluationResult
    #: `EvaluationResult.slot` and `started_at`.
    slot: int | None = None
    started_at: float | None = None

    @classmethod
    def of(cls, place: int, result: EvaluationResult) -> "EvaluationRow":
        """The row of a result."""
        plain = msgspec.structs.replace(result, slot=None, started_at=None)
        return cls(place, plain, result.slot, result.started_at)

    def taken(self) -> EvaluationResult:
        """The result. To be called once: it becomes the row's own, as a study may have a hundred thousand."""
        result = self.result
        if self.slot is not None:
            msgspec.structs.force_setattr(result, "slot", self.slot)
        if self.started_at is not None:
            msgspec.structs.force_setattr(result, "started_at", self.started_at)
        return result


class ProgressRow(msgspec.Struct, array_like=True):
    """How far a coordinator got."""

    #: Seconds that the study ran.
    elapsed: float = 0.0
    #: Results recorded.
    results: int = 0
    #: Trials recorded, and whether a score on the test part; None: an earlier trialfleet did not write it down.
    trials: int | None = None
    tested: bool | None = None


class TrialSpace:
    """The distributions of a trial, decoded. Trials share it: nobody may change what it holds."""

    def __init__(
        self, ours: dict[str, Distribution] | None = None, optuna: "dict[str, BaseDistribution] | None" = None
    ) -> None:
        self._ours = ours
        self._optuna = optuna
        distributions = ours or optuna or {}
        self._names = tuple(distributions)
        #: By name, what makes a value of its internal representation, where that is another.
        self._to_external = [
            (name, convert) for name, each in distributions.items() if (convert := _to_external(each)) is not float
        ]

    @property
    def optuna(self) -> "dict[str, BaseDistribution]":
        """By name, in Optuna's words."""
        if self._optuna is None:
            from trialfleet_coordinator.adapters.optuna_distributions import to_optuna  # noqa: PLC0415  # see the top

            self._optuna = {name: to_optuna(each) for name, each in (self._ours or {}).items()}
        return self._optuna

    @property
    def ours(self) -> dict[str, Distribution]:
        """By name, in our words. Raises ValueError for what Optuna has and we do not, as infinite choices."""
        if self._ours is None:
            from trialfleet_coordinator.adapters.optuna_distributions import from_optuna  # noqa: PLC0415  # see the top

            self._ours = {name: from_optuna(each) for name, each in self.optuna.items()}
        return self._ours

    def params(self, internal: Sequence[float]) -> dict[str, Any]:
        """The values by name, given their internal representations in the order of the space."""
        params: dict[str, Any] = dict(zip(self._names, internal, strict=True))
        for name, convert in self._to_external:
            params[name] = convert(params[name])
        return params


_ENCODER = msgspec.msgpack.Encoder()
_OUR_SPACE = msgspec.msgpack.Decoder(dict[str, Distribution])
_OPTUNA_SPACE = msgspec.msgpack.Decoder(dict[str, str])
_STUDY_ROW = msgspec.msgpack.Decoder(StudyRow)
_TRIAL_ROW = msgspec.msgpack.Decoder(TrialRow)
_EVALUATION_ROW = msgspec.msgpack.Decoder(EvaluationRow)
_PROGRESS_ROW = msgspec.msgpack.Decoder(ProgressRow)
_ATTR = msgspec.msgpack.Decoder(tuple[str, str])


def to_attrs(text: str) -> dict[str, Any]:
    """The attributes in `TrialRow.user` or `TrialRow.system`."""
    attrs = _parsed(text) if text else {}
    if any(isinstance(value, list | dict) for value in attrs.values()):
        return json.loads(text)  # type: ignore[no-any-return]  # as below; whoever gets it may change what is in it
    return dict(attrs)


def attr_of(text: str, key: str) -> Any:
    """One of the attributes in `TrialRow.user` or `TrialRow.system`; None when it is not set."""
    return _parsed(text).get(key) if text else None


@lru_cache(maxsize=1024)
def _parsed(text: str) -> dict[str, Any]:
    # Most trials of a study have one of a few texts.
    return json.loads(text)  # type: ignore[no-any-return]  # written by `from_attrs`


def from_attrs(attrs: dict[str, Any]) -> str:
    """Attributes as JSON text. Raises TypeError for what JSON does not have."""
    return json.dumps(attrs) if attrs else ""


def our_space(distributions: dict[str, Distribution]) -> bytes:
    """A space of our distributions, as it is stored."""
    return _OURS + _ENCODER.encode(distributions)


def optuna_space(distributions: "dict[str, BaseDistribution]") -> bytes:
    """A space of Optuna's distributions, as it is stored."""
    from optuna.distributions import distribution_to_json  # noqa: PLC0415  # see the top

    return _OPTUNAS + _ENCODER.encode({name: distribution_to_json(each) for name, each in distributions.items()})


def decode_trial(stored: bytes) -> TrialRow:
    """The trial in `stored`."""
    return _TRIAL_ROW.decode(stored)


class StudyTables:
    """The tables of one environment. Methods take the transaction they work in; what is missing is a KeyError."""

    def __init__(self, path: Path) -> None:
        self.environment = LmdbEnvironment(
            path, layout=LAYOUT, databases=DATABASES, map_bytes=MAP_BYTES, earlier={LAYOUT_1: _seal_all}
        )
        #: Decoded spaces. They are named by what they contain, so an entry is right for ever.
        self._spaces: dict[bytes, TrialSpace] = {b"": TrialSpace({})}

    def identity(self, transaction: Transaction) -> bytes:
        """What the store was given by `identify`; empty before that."""
        return self._get(transaction, "meta", _IDENTITY) or b""

    def identify(self, transaction: Transaction, identity: bytes) -> None:
        """Take it for what no other store has."""
        self._put(transaction, "meta", _IDENTITY, identity)

    def next_study(self, transaction: Transaction) -> int:
        """The id that the next study gets."""
        return int.from_bytes(self._get(transaction, "meta", _NEXT_STUDY) or b"", "big")

    def create_study(self, transaction: Transaction, name: str, directions: Sequence[int]) -> int:
        """A new study's id. The name must not be taken."""
        study = self.next_study(transaction)
        self._put(transaction, "meta", _NEXT_STUDY, _STUDY.pack(study + 1))
        row = _ENCODER.encode(StudyRow(name, list(directions)))
        if not self._put(transaction, "studies", _STUDY.pack(study), row, overwrite=False):
            raise self.damaged(f"study {study} is there, though it was never made")
        self._put(transaction, "names", _digest(name.encode()), _STUDY.pack(study))
        return study

    def study_id(self, transaction: Transaction, name: str) -> int | None:
        """The id of the study called `name`, None when there is none."""
        stored = self._get(transaction, "names", _digest(name.encode()))
        if stored is None:
            if any(row.name == name for _, row in self.studies(transaction)):
                raise self.damaged(f"study {name!r} is not found by its name")
            return None
        study = int.from_bytes(stored, "big")
        if self.study(transaction, study).name != name:
            raise self.damaged(f"the name {name!r} leads to another study")
        return study

    def study(self, transaction: Transaction, study: int) -> StudyRow:
        """The study with this id."""
        stored = self._get(transaction, "studies", _STUDY.pack(study)) if 0 <= study < 2**32 else None
        if stored is None:
            raise KeyError(f"no study has the id {study}")
        return _STUDY_ROW.decode(stored)

    def studies(self, transaction: Transaction) -> list[tuple[int, StudyRow]]:
        """All studies, by id."""
        rows = self._range(transaction, "studies", b"")
        return [(int.from_bytes(key, "big"), _STUDY_ROW.decode(stored)) for key, stored in rows]

    def adopt(
        self, transaction: Transaction, rows: Mapping[str, Sequence[tuple[bytes, bytes]]], *, next_study: int
    ) -> None:
        """Take in what another store had, by table: keys and values."""
        for table, values in rows.items():
            for key, value in values:
                self._put(transaction, table, key, value)
        self._put(transaction, "meta", _NEXT_STUDY, _STUDY.pack(next_study))

    def delete_study(self, transaction: Transaction, study: int) -> None:
        """Remove the study and all that belongs to it."""
        name = self.study(transaction, study).name
        transaction.delete(_digest(name.encode()), db=self._db("names"))
        prefix = _STUDY.pack(study)
        for database in (one for one in DATABASES if one != "names"):
            cursor = transaction.cursor(self._db(database))
            found = cursor.set_range(prefix)
            while found and cursor.key().startswith(prefix):
                found = cursor.delete()

    def set_attr(self, transaction: Transaction, study: int, kind: bytes, key: str, value: Any) -> None:
        """Set an attribute of the study. Raises TypeError for a value that JSON does not have."""
        stored = _ENCODER.encode((key, json.dumps(value)))
        self._put(transaction, "attrs", _STUDY.pack(study) + kind + _digest(key.encode()), stored)

    def attr(self, transaction: Transaction, study: int, kind: bytes, key: str) -> Any:
        """An attribute of the study, None when it is not set."""
        stored = self._get(transaction, "attrs", _STUDY.pack(study) + kind + _digest(key.encode()))
        return None if stored is None else json.loads(_ATTR.decode(stored)[1])

    def attrs(self, transaction: Transaction, study: int, kind: bytes) -> dict[str, Any]:
        """All attributes of a kind, by key."""
        stored = sorted(
            _ATTR.decode(stored) for _, stored in self._range(transaction, "attrs", _STUDY.pack(study) + kind)
        )
        return {key: json.loads(text) for key, text in stored}

    def parameter(self, transaction: Transaction, study: int, name: str) -> "BaseDistribution | None":
        """The distribution that the parameter was last suggested from, None when it is new to the study."""
        from optuna.distributions import json_to_distribution  # noqa: PLC0415  # see the top

        stored = self._get(transaction, "parameters", _STUDY.pack(study) + _digest(name.encode()))
        return None if stored is None else json_to_distribution(stored.decode())

    def set_parameter(self, transaction: Transaction, study: int, name: str, distribution: "BaseDistribution") -> None:
        """Remember the distribution that the parameter was last suggested from."""
        from optuna.distributions import distribution_to_json  # noqa: PLC0415  # see the top

        key = _STUDY.pack(study) + _digest(name.encode())
        self._put(transaction, "parameters", key, distribution_to_json(distribution).encode())

    def put_space(self, transaction: Transaction, study: int, stored: bytes) -> bytes:
        """Keep the space unless the study has it; returns its digest."""
        digest = _digest(stored)
        self._put(transaction, "spaces", _STUDY.pack(study) + digest, stored, overwrite=False)
        return digest

    def space(self, transaction: Transaction, study: int, digest: bytes) -> TrialSpace:
        """The space with this digest."""
        space = self._spaces.get(digest)
        if space is None:
            stored = self._get(transaction, "spaces", _STUDY.pack(study) + digest)
            if stored is None:
                raise KeyError(digest.hex())
            space = self._spaces[digest] = _decode_space(stored)
        return space

    def count_trials(self, transaction: Transaction, study: int) -> int:
        """How many trials the study has; this is the next one's number."""
        cursor = transaction.cursor(self._db("trials"))
        # The entry before the next study's first one is this study's last, if it has any.
        found = cursor.prev() if cursor.set_range(_STUDY.pack(study + 1)) else cursor.last()
        if not found or not cursor.key().startswith(_STUDY.pack(study)):
            return 0
        return int(_TRIAL.unpack(cursor.key())[1]) + 1

    def stored_trial(self, transaction: Transaction, study: int, number: int) -> bytes:
        """The trial, encoded."""
        inside = 0 <= study < 2**32 and 0 <= number < 2**32
        stored = self._get(transaction, "trials", _TRIAL.pack(study, number)) if inside else None
        if stored is None:
            raise KeyError(f"study {study} has no trial with the number {number}")
        return stored

    def stored_trials(self, transaction: Transaction, study: int, first: int) -> Iterator[bytes]:
        """The trials from number `first` on, encoded."""
        rows = self._range(transaction, "trials", _STUDY.pack(study), _TRIAL.pack(study, first))
        for number, (key, stored) in enumerate(rows, first):
            if key != _TRIAL.pack(study, number):
                raise self.damaged(f"trial {number} of study {study} is missing")
            yield stored

    def put_trial(self, transaction: Transaction, study: int, number: int, row: TrialRow) -> None:
        """Write the trial."""
        self._put(transaction, "trials", _TRIAL.pack(study, number), _ENCODER.encode(row))

    def put_evaluation(self, transaction: Transaction, study: int, row: EvaluationRow) -> bool:
        """Keep the result unless there is one for its key; returns whether it was new."""
        result = row.result
        key = _EVALUATION.pack(study, result.trial, result.rung, result.fold + 1)
        return self._put(transaction, "evaluations", key, _ENCODER.encode(row), overwrite=False)

    def evaluations(self, transaction: Transaction, study: int) -> Iterator[EvaluationRow]:
        """The results of the study, by trial, rung and fold."""
        for _, stored in self._range(transaction, "evaluations", _STUDY.pack(study)):
            yield _EVALUATION_ROW.decode(stored)

    def progress(self, transaction: Transaction, study: int) -> ProgressRow:
        """How far the coordinator got; nowhere yet when nothing is recorded."""
        stored = self._get(transaction, "progress", _STUDY.pack(study))
        return ProgressRow() if stored is None else _PROGRESS_ROW.decode(stored)

    def put_progress(self, transaction: Transaction, study: int, row: ProgressRow) -> None:
        """Write how far the coordinator got."""
        self._put(transaction, "progress", _STUDY.pack(study), _ENCODER.encode(row))

    def damaged(self, what: str) -> StoreError:
        """The error that tells of damage."""
        return StoreError(f"the study store at {self.environment.path} is damaged: {what}; see `trialfleet doctor`")

    def _db(self, name: str) -> Any:
        return self.environment.database(name)

    def _get(self, transaction: Transaction, table: str, key: bytes) -> bytes | None:
        stored = transaction.get(key, db=self._db(table))
        return None if stored is None else self._opened(table, key, stored)

    def _put(self, transaction: Transaction, table: str, key: bytes, value: bytes, *, overwrite: bool = True) -> bool:
        return transaction.put(key, sealed(table, key, value), overwrite=overwrite, db=self._db(table))

    def _range(
        self, transaction: Transaction, table: str, prefix: bytes, start: bytes | None = None
    ) -> Iterator[tuple[bytes, bytes]]:
        cursor = transaction.cursor(self._db(table))
        if cursor.set_range(start or prefix):
            for key, stored in cursor:
                if not key.startswith(prefix):
                    return
                yield key, self._opened(table, key, stored)

    def _opened(self, table: str, key: bytes, stored: bytes) -> bytes:
        value = unsealed(table, key, stored)
        if value is None:
            raise self.damaged(f"what stands in {table!r} under {key.hex()} is not what was written")
        return value


#: By table: the checksum of its name, which those of its values begin with.
_SEEDS = {name: zlib.crc32(name.encode()) for name in ("meta", *DATABASES)}
_NEXT_STUDY = b"next study"
_IDENTITY = b"identity"


def sealed(table: str, key: bytes, value: bytes) -> bytes:
    """The value as it is stored: with its checksum."""
    return value + zlib.crc32(value, zlib.crc32(key, _SEEDS[table])).to_bytes(_CHECKSUM_BYTES)


def unsealed(table: str, key: bytes, stored: bytes) -> bytes | None:
    """The value of what is stored; None when its checksum is another."""
    value = stored[:-_CHECKSUM_BYTES]
    return value if stored == sealed(table, key, value) else None


def _seal_all(transaction: Transaction, databases: Mapping[str, Any]) -> None:
    """Make a store of the first layout one of this."""
    for table in DATABASES:
        for key, value in list(transaction.cursor(databases[table])):
            transaction.put(key, sealed(table, key, value), db=databases[table])
    next_study = transaction.get(_NEXT_STUDY, db=databases["meta"])
    if next_study is not None:
        transaction.put(_NEXT_STUDY, sealed("meta", _NEXT_STUDY, next_study), db=databases["meta"])


def _digest(data: bytes) -> bytes:
    return blake2b(data, digest_size=_DIGEST_BYTES).digest()


def _decode_space(stored: bytes) -> TrialSpace:
    if stored[:1] == _OURS:
        return TrialSpace(_OUR_SPACE.decode(stored[1:]))
    from optuna.distributions import json_to_distribution  # noqa: PLC0415  # see the top

    texts = _OPTUNA_SPACE.decode(stored[1:])
    return TrialSpace(optuna={name: json_to_distribution(text) for name, text in texts.items()})


def _to_external(distribution: "Distribution | BaseDistribution") -> Callable[[float], Any]:
    """The distribution's `to_external_repr`, by a function in C where there is one."""
    match distribution:
        case Float():
            return float
        case Int():
            return int
        case Categorical():
            choices = distribution.choices
            return lambda index: choices[int(index)]
    return _optuna_to_external(distribution)


def _optuna_to_external(distribution: "BaseDistribution") -> Callable[[float], Any]:
    from optuna.distributions import FloatDistribution, IntDistribution  # noqa: PLC0415  # see the top

    match distribution:
        case FloatDistribution():
            return float
        case IntDistribution():
            return int
    return distribution.to_external_repr
