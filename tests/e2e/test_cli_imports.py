"""What running a study does not import: libraries that take longer than many an objective."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

STUDY = """
[study]
objective = "objective.py:train"
trials = 2
[data]
source = "data.npz"
[resampling]
kind = "kfold"
folds = 2
[space.x]
type = "float"
min = 0.0
max = 1.0
"""
OBJECTIVE = "def train(params, data): return params['x'] + float(data.y.mean())\n"
#: Runs the command in this process, then tells on standard error what it has imported.
COMMAND = """
import sys
from trialfleet.cli import main
try:
    main()
finally:
    print("\\n" + " ".join(sorted({name.partition(".")[0] for name in sys.modules})), file=sys.stderr)
"""
#: Each takes 0.1 to 0.5 seconds of a core.
SLOW = {"aiohttp", "dramatiq", "optuna", "pandas", "pika", "prometheus_client", "pyarrow", "sklearn"}


def test_a_study_of_arrays_imports_nothing_slow(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text(STUDY)
    (tmp_path / "objective.py").write_text(OBJECTIVE)
    np.savez(tmp_path / "data.npz", X=np.zeros((20, 2)), y=np.arange(20.0))

    command = [sys.executable, "-c", COMMAND, "run", "study.toml", "--json", "--slots", "1", "--home", "home"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)

    assert json.loads(done.stdout)["complete"] == 2
    imported = set(done.stderr.splitlines()[-1].split())
    assert "numpy" in imported
    assert not SLOW & imported
