"""One contestant: four processes that have read the whole table and hold it for a moment.

Whoever holds the table leaves a file of its process number in FOLDER and waits until all four have.
"""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from trialfleet_shared.settings import EfficiencyConfig

PROCESSES = 4
#: Seconds that a process holds the table after all have it.
HOLD_SECONDS = 1.0
_PATIENCE_SECONDS = 300.0


def hold(folder: Path) -> None:
    """Say that this process has the table, wait for the others, and hold on to it."""
    (folder / str(os.getpid())).touch()
    until = time.monotonic() + _PATIENCE_SECONDS
    while len(list(folder.iterdir())) < PROCESSES and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(HOLD_SECONDS)


def objective(params: dict[str, Any], data: Any) -> float:
    """Read all of it, as every learner does."""
    total = float(data.X.sum() + data.y.sum() + data.X_valid.sum() + data.y_valid.sum())
    hold(Path(os.environ["MEMORY_FOLDER"]))
    return total + params["x"]


def note_time(params: dict[str, Any], data: Any) -> float:
    """Say when it was called; look at the data's first and last row."""
    with Path(os.environ["MEMORY_FOLDER"], "called").open("a") as file:
        file.write(f"{time.time()}\n")
    return float(data.X[0, 0] + data.X[-1, 0] + params["x"])


def study(function: Callable[..., float], file: Path, home: Path, trials: int) -> None:
    """A study on the table with four slots, whatever the number of cores."""
    import trialfleet  # noqa: PLC0415  # a contestant's imports are part of its memory
    from trialfleet import engine  # noqa: PLC0415  # see above

    engine.cores = lambda: PROCESSES
    trialfleet.optimize(
        function,
        {"x": {"type": "float", "min": 0, "max": 1}},
        n_trials=trials,
        config=EfficiencyConfig(enable_data_subsampling=False, enable_caching=False, max_workers=PROCESSES),
        home=home,
        data=str(file),
        target="y",
    )


def trialfleet_study(file: Path, folder: Path) -> None:
    """Four slots of a study, on the data cache."""
    os.environ["MEMORY_FOLDER"] = str(folder)
    study(objective, file, file.parent / "home", PROCESSES)


def trialfleet_first_trial(file: Path, folder: Path) -> None:
    """Print the seconds to the first call of the objective: of the first study of a process, and of the next ones."""
    os.environ["MEMORY_FOLDER"] = str(folder)
    for _ in range(6):
        started = time.time()
        study(note_time, file, file.parent / "home", 1)
        print(_first_call(folder) - started)


def trialfleet_after_import(file: Path, folder: Path) -> None:
    """Print the seconds from the end of the table's import to the first call of the objective, in one study."""
    from trialfleet_workers.adapters.lmdb_data import DataCache  # noqa: PLC0415  # see above

    os.environ["MEMORY_FOLDER"] = str(folder)
    bring_in, ends = DataCache.import_data, []

    def noting(*arguments: Any, **named: Any) -> Any:
        info = bring_in(*arguments, **named)
        ends.append(time.time())
        return info

    DataCache.import_data = noting  # type: ignore[method-assign]  # no other way to see where the import ends
    study(note_time, file, folder / "home", 1)
    print(_first_call(folder) - ends[0])


def _first_call(folder: Path) -> float:
    called = folder / "called"
    first = min(map(float, called.read_text().split()))
    called.unlink()
    return first


def trialfleet_import(file: Path, _folder: Path) -> None:
    """Bring the table into the data cache."""
    from trialfleet_shared.messages import DataSpec  # noqa: PLC0415  # see above
    from trialfleet_workers.adapters.lmdb_data import DataCache  # noqa: PLC0415  # see above

    print(
        DataCache(file.parent / "home" / "data").import_data(DataSpec(source=str(file), target="y"), base=Path()).rows
    )


def _read_pandas(file: Path, folder: Path) -> None:
    import pandas as pd  # noqa: PLC0415  # see above

    frame = pd.read_parquet(file)
    features, target = frame.drop(columns="y"), frame["y"]
    features.to_numpy().sum()
    target.to_numpy().sum()
    if folder.is_dir():
        hold(folder)


def pandas_import(file: Path, _folder: Path) -> None:
    """Read the table as one does."""
    _read_pandas(file, Path("nowhere"))


def _four(target: Callable[[Path, Path], None], file: Path, folder: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=target, args=(file, folder)) for _ in range(PROCESSES)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()


def pandas_per_process(file: Path, folder: Path) -> None:
    """Each process reads the parquet file into a frame of its own."""
    _four(_read_pandas, file, folder)


def _read_numpy(file: Path, folder: Path) -> None:
    array = np.load(file.with_suffix(".npy"))
    array.sum()
    hold(folder)


def numpy_per_process(file: Path, folder: Path) -> None:
    """Each process loads a ready array of its own: the least that a copy per process can take."""
    _four(_read_numpy, file, folder)


def _sum(array: np.ndarray, folder: Path) -> None:
    array.sum()
    hold(folder)


def joblib_automatic(file: Path, folder: Path) -> None:
    """joblib's processes, given an array that this process has loaded: joblib writes it to a map for them."""
    import joblib  # noqa: PLC0415  # see above

    array = np.load(file.with_suffix(".npy"))
    joblib.Parallel(n_jobs=PROCESSES)(joblib.delayed(_sum)(array, folder) for _ in range(PROCESSES))


def joblib_mapped(file: Path, folder: Path) -> None:
    """joblib's processes, given an array that is a map already: what a careful user does who has it as a file."""
    import joblib  # noqa: PLC0415  # see above

    array = np.load(file.with_suffix(".npy"), mmap_mode="r")
    joblib.Parallel(n_jobs=PROCESSES)(joblib.delayed(_sum)(array, folder) for _ in range(PROCESSES))


def joblib_mapped_and_split(file: Path, folder: Path) -> None:
    """The same, and each process takes its training and validation rows of it, in random order, as studies do."""
    import joblib  # noqa: PLC0415  # see above

    array = np.load(file.with_suffix(".npy"), mmap_mode="r")
    joblib.Parallel(n_jobs=PROCESSES)(joblib.delayed(_split)(array, folder) for _ in range(PROCESSES))


def _split(array: np.ndarray, folder: Path) -> None:
    from sklearn.model_selection import train_test_split  # noqa: PLC0415  # see above

    parts = train_test_split(array, test_size=0.2, random_state=0)
    sum(part.sum() for part in parts)
    hold(folder)
