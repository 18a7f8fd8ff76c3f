"""Bad input of every kind: one line that names it, exit status 2, no traceback; -v shows where it comes from."""

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import PATIENCE, environment, trialfleet

STUDY = """
[study]
name = "s"
objective = "{objective}"
trials = 3
[space.x]
type = "float"
min = 0.0
max = 1.0
"""
OBJECTIVES = {
    "works.py": "def train(params):\n    return 1.0\n",
    "with_data.py": "def train(params, data):\n    return 1.0\n",
    "broken.py": "import there_is_no_such_module\n",
    "odd.py": "train = 3\n\ndef with_more(params, model):\n    return 1.0\n",
    "syntax.py": "def train(params:\n",
    "quits.py": "import sys\nsys.exit(0)\n",
}
TABLE = "age,income\n30,1\n40,0\n50,\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in OBJECTIVES.items():
        (tmp_path / name).write_text(code)
    (tmp_path / "table.csv").write_text(TABLE)
    (tmp_path / "empty.csv").write_text("age,income\n1,\n2,\n3,\n")
    return tmp_path


def check_one_line(done: "subprocess.CompletedProcess[str]", status: int, *words: str) -> None:
    assert done.returncode == status, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: "), done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("none.py:train", ["'none.py:train'", "there is no file"]),
        ("works.py:trian", ["'works.py:trian'", "did you mean 'train'?"]),
        ("works.py", ["'works.py' names no function", "allowed is"]),
        ("odd.py:train", ["'odd.py:train' is a int; a function is needed"]),
        ("odd.py:with_more", ["needs 'model'", "allowed is"]),
        ("broken.py:train", ["its import failed", "there_is_no_such_module"]),
        ("syntax.py:train", ["syntax error", "syntax.py, line 1"]),
        ("quits.py:train", ["its import raised SystemExit"]),
        ("with_data.py:train", ["takes data, but the study has no data set"]),
        ("no_such_package.module:train", ["there is no module"]),
    ],
)
def test_an_objective_that_can_not_be_called(objective: str, words: list[str], folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective=objective))

    check_one_line(trialfleet(["run", study], folder / "home"), 2, *words)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("source = 'none.csv'\ntarget = 'income'", ["study.toml: data.source = 'none.csv'", "there is no file"]),
        ("source = 'table.csv'\ntarget = 'incme'", ["study.toml: data.target = 'incme'", "did you mean 'income'?"]),
        ("source = 'empty.csv'\ntarget = 'income'", ["study.toml: data.target = 'income' has no value"]),
    ],
)
def test_data_that_can_not_be_used(data: str, words: list[str], folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="with_data.py:train") + f"[data]\n{data}\n")

    check_one_line(trialfleet(["run", study], folder / "home"), 2, *words)


def test_data_that_the_objective_does_not_take(folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="works.py:train") + "[data]\nsource = 'table.csv'\ntarget = 'age'\n")

    check_one_line(trialfleet(["run", study], folder / "home"), 2, "'works.py:train' takes no data")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "none.toml"], ["none.toml: No such file or directory"]),
        (["run"], ["Missing argument 'STUDY_FILE'", "see trialfleet run --help"]),
        (["run", "study.toml", "--trails", "3"], ["--trails", "--trials"]),
        (["run", "study.toml", "--trials", "many"], ['--trials = "many": expected int']),
        (["run", "study.toml", "--trials", "0"], ['--trials = "0": expected int >= 1']),
        (["run", "study.toml", "--slots", "0"], ['--slots = "0": allowed is at least 1']),
        (["run", "study.toml", "--mode", "quick"], ["quick", "fast", "balanced", "thorough"]),
        (["run", "study.toml", "--set", "x=1"], ["--set x=1", "SECTION.KEY=VALUE"]),
        (["run", "study.toml", "--set", "efficiency.cache_sise=1"], ["did you mean 'cache_size'?"]),
        (["run", "study.toml", "--sampler", "x"], ["--sampler"]),
        (["run", "study.toml", "--set", "study.sampler=tpee"], ["sampler 'tpee'", "did you mean 'tpe'?"]),
        (["run", "study.toml", "--warm-start", "none"], ["there is no study 'none'"]),
        (["run", "study.toml", "--fork", ""], ['--fork = "": expected str of length >= 1']),
        (["run", "study.toml", "--fork", "\x1bc"], [r'--fork = "\u001bc": expected str without control characters']),
        (["run", "study.toml", "--set", "\x1bc"], [r"--set \x1bc: allowed is"]),
        (["run", "study.toml", "--fork", "\udcff"], ["'\\udcff' is not Unicode"]),
        (["report", "\udcff"], ["'\\udcff' is not Unicode"]),
        (["report", "none"], ["there is no study 'none'"]),
        (["list"], ["no coordinator runs on", "trialfleet coordinator", "trialfleet studies"]),
        (["studeis"], ["studeis"]),
    ],
)
def test_arguments_that_can_not_be_used(
    arguments: list[str], words: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (folder / "study.toml").write_text(STUDY.format(objective="works.py:train"))

    check_one_line(trialfleet(arguments, folder / "home"), 2, *words)


def test_an_unknown_variable(folder: Path) -> None:
    done = trialfleet(["studies"], folder / "home", TRIALFLEET_TRAILS="3")

    check_one_line(done, 2, "TRIALFLEET_TRAILS: unknown variable; did you mean 'TRIALFLEET_TRIALS'?")


def test_a_home_that_can_not_be_used(folder: Path) -> None:
    (folder / "file").write_text("")

    check_one_line(
        trialfleet(["studies", "--home", folder / "file" / "home"], folder / "home"), 4, str(folder / "file")
    )


def test_verbose_shows_where_an_error_comes_from(folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="broken.py:train"))

    done = trialfleet(["run", study, "-v"], folder / "home")

    assert done.returncode == 2
    assert "Traceback" in done.stderr
    assert "there_is_no_such_module" in done.stderr


def test_verbose_shows_no_terminal_what_it_would_obey(folder: Path) -> None:
    done = trialfleet(["run", folder / "study.toml", "--set", "\x1bc", "-v"], folder / "home")

    assert done.returncode == 2
    assert done.stderr.count(r"--set \x1bc") == 2
    assert "\x1b" not in done.stderr


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="works.py:train"))
    trialfleet(["run", study], folder / "home")

    process = subprocess.Popen(
        [sys.executable, "-m", "trialfleet", "report", "s", "--json"],
        env=environment(folder / "home"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr as errors:
        assert errors.read() == ""

    assert process.wait(PATIENCE) == 1


def redirected(arguments: list[str], home: Path, how: str) -> "subprocess.CompletedProcess[str]":
    """Run `trialfleet` with its streams as a shell's words say."""
    return subprocess.run(
        ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-m", "trialfleet", *arguments],
        env=environment(home),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


@pytest.mark.parametrize(("how", "words"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")])
def test_output_that_can_not_be_written(folder: Path, how: str, words: str) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="works.py:train"))
    home = folder / "home"

    ran = redirected(["run", str(study)], home, how)
    assert (ran.returncode, ran.stderr.splitlines()[-1]) == (1, f"error: standard output can not be written: {words}")
    assert "s is finished already" in trialfleet(["run", study], home).stderr

    for arguments in (
        ["report", "s", "--json"],
        ["studies"],
        ["doctor"],
        ["export", "s"],
        ["health"],
        ["--help"],
    ):
        check_one_line(redirected(arguments, home, how), 1, f"standard output can not be written: {words}\n")


def test_streams_that_are_closed_and_not_needed(folder: Path) -> None:
    study = folder / "study.toml"
    study.write_text(STUDY.format(objective="works.py:train"))
    home = folder / "home"

    assert redirected(["run", str(study), "--json"], home, "2>&-").returncode == 0
    check_one_line(redirected(["delete", "s"], home, "<&-"), 2, "nobody can be asked")
    file = folder / "trials.csv"
    assert redirected(["export", "s", "--output", str(file)], home, "<&- >&- 2>&-").returncode == 0
    assert file.read_text().count("\n") == 4


def test_help_is_quick_and_says_where_things_are_kept(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "trialfleet", "run", "--help"],
        env=environment(folder / "home"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}

    assert "TRIALFLEET_HOME" in done.stdout
    assert "click" in imported
    assert not imported & {"optuna", "dramatiq", "pika", "numpy", "pandas", "rich", "lmdb", "prometheus_client"}


@pytest.mark.parametrize("arguments", [[], ["deadletters"]])
def test_no_command_at_all_is_answered_with_help(folder: Path, arguments: list[str]) -> None:
    done = trialfleet(arguments, folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: trialfleet")
    assert "\nCommands:\n" in done.stderr


def test_a_token_file_that_can_not_be_read_is_named(folder: Path) -> None:
    for file, words in (("none", "No such file or directory"), ("odd", "it is no text")):
        (folder / "odd").write_bytes(b"\xff")
        done = trialfleet(["list"], folder, TRIALFLEET_TOKEN_FILE=str(folder / file))
        check_one_line(done, 2, f"TRIALFLEET_TOKEN_FILE = {folder / file}: {words}\n")


def test_the_version_is_told(folder: Path) -> None:
    assert trialfleet(["--version"], folder).stdout.startswith("trialfleet 0.")
