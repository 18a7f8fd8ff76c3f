"""study.toml: every layer, and every kind of mistake as one line."""

import json
import re
from pathlib import Path

import pytest

from trialfleet.study_file import MOST_POINTS, load_study, read_space, read_toml
from trialfleet_shared.errors import ConfigurationError
from trialfleet_shared.ladder import Rung
from trialfleet_shared.settings import EfficiencyConfig
from trialfleet_shared.space import Categorical, Float, Int, SearchSpace
from trialfleet_shared.tables import Setting

STUDY = """
[study]
objective = "objective.py:train"
trials = 10
"""
SPACE = """
[space.x]
type = "float"
min = 0.0
max = 1.0
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "study.toml"
    path.write_text(text)
    return path


def test_a_small_study_file_gets_the_defaults(tmp_path: Path) -> None:
    folder = tmp_path / "wine"
    folder.mkdir()

    study = load_study(write(folder, STUDY + SPACE))

    assert study.name == "wine"
    assert study.direction == "maximize"
    assert study.config == EfficiencyConfig.balanced()
    assert (study.budget.trials, study.budget.seconds, study.budget.target) == (10, None, None)
    assert study.data is None
    assert study.base == folder
    assert study.space.describe() == SearchSpace({"x": Float(0.0, 1.0)}).describe()


@pytest.mark.parametrize("name", ["\x1b]0;owned\x07", "two\nlines", "line\n", "\x9b31m"])
def test_a_name_that_would_do_more_than_stand_on_a_terminal_is_refused(name: str, tmp_path: Path) -> None:
    shown = json.dumps(name)
    told = "expected str without control characters"
    path = write(tmp_path, STUDY + f"name = {shown}" + SPACE)
    with pytest.raises(ConfigurationError, match=re.escape(f"{path}: study.name = {shown}: {told}")):
        load_study(path)
    with pytest.raises(ConfigurationError, match=re.escape(f"--name = {shown}: {told}")):
        load_study(write(tmp_path, STUDY + SPACE), {"study": [Setting("name", name, "--name", is_text=True)]})
    folder = tmp_path / name
    folder.mkdir()
    with pytest.raises(ConfigurationError, match=re.escape(f"study.name (the folder's) = {shown}: {told}")):
        load_study(write(folder, STUDY + SPACE))


def test_every_section_is_read(tmp_path: Path) -> None:
    study = load_study(
        write(
            tmp_path,
            """
            [study]
            name = "s"
            objective = "objective.py:train"
            direction = "minimize"
            mode = "fast"
            seconds = 5
            target = 0
            seed = 3
            sampler = "random"
            evaluation_seconds = 1.5
            memory_mb = 100
            points_to_evaluate = [{ kind = "a", n = 3 }, { kind = true }]
            [data]
            source = "table.csv"
            target = "y"
            order = "temporal"
            time_column = "t"
            [resampling]
            kind = "forward"
            folds = 4
            [efficiency]
            batch_size = 7
            ladder = [{ fraction = 0.5, folds = 1 }, { fraction = 1.0, folds = 4 }]
            [space.kind]
            type = "categorical"
            choices = ["a", 1, true]
            [space.n]
            type = "int"
            min = 1
            max = 9
            step = 2
            when = { kind = ["a"] }
            """,
        )
    )

    assert study.data is not None
    assert (study.data.source, study.data.target, study.data.seed) == ("table.csv", "y", 3)
    assert (study.data.resampling.kind, study.data.resampling.folds) == ("forward", 4)
    assert study.config.batch_size == 7
    assert study.config.pruning_threshold == EfficiencyConfig.fast().pruning_threshold
    assert study.config.ladder is not None
    assert [rung.fraction for rung in study.config.ladder] == [0.5, 1.0]
    assert isinstance(study.space, SearchSpace)
    assert study.space.parameters == {
        "kind": Categorical(["a", 1, True]),
        "n": Int(1, 9, step=2, when={"kind": ["a"]}),
    }
    assert [point.params for point in study.points_to_evaluate] == [{"kind": "a", "n": 3}, {"kind": True}]
    assert (study.seed, study.sampler, study.evaluation_seconds, study.memory_mb) == (3, "random", 1.5, 100.0)


def test_later_layers_win(tmp_path: Path) -> None:
    path = write(tmp_path, STUDY + "mode = 'fast'\n[efficiency]\nbatch_size = 7\ncache_size = 8\n" + SPACE)
    environment = [Setting("batch_size", "9", "TRIALFLEET_BATCH_SIZE", is_text=True)]
    flags = [Setting("max_workers", "3", "--slots", is_text=True)]

    study = load_study(
        path,
        {
            "study": [Setting("trials", "77", "--trials", is_text=True)],
            "efficiency": [*environment, *flags],
        },
    )

    assert study.budget.trials == 77
    assert study.config.subsample_fraction == 0.2  # mode
    assert study.config.cache_size == 8  # file over mode
    assert study.config.batch_size == 9  # environment over file
    assert study.config.max_workers == 3  # flag


def test_a_space_can_be_a_function(tmp_path: Path) -> None:
    (tmp_path / "space_of_function_test.py").write_text(
        "def space(trial):\n"
        "    if trial.suggest_categorical('k', ['a']) == 'a':\n"
        "        trial.suggest_int('n', 1, 3)\n"
    )

    study = load_study(write(tmp_path, STUDY + "space = 'space_of_function_test.py:space'"))

    assert study.space.draw(lambda name, distribution: {"k": "a", "n": 2}[name]) == {"k": "a", "n": 2}


def test_a_space_function_that_raises_is_named_before_anything_is_run(tmp_path: Path) -> None:
    (tmp_path / "space_that_raises_test.py").write_text("def space(trial):\n    trial.suggest_float('x', 1, 0)\n")
    path = write(tmp_path, STUDY + "space = 'space_that_raises_test.py:space'")

    with pytest.raises(ConfigurationError) as caught:
        load_study(path)

    file = tmp_path / "space_that_raises_test.py"
    assert str(caught.value) == (
        f'{path}: study.space = "space_that_raises_test.py:space" raised ValueError: '
        f"min = 1.0 is above max = 0.0; min <= max is needed, in {file}, line 2"
    )


MISTAKES = {
    "not TOML": ("[study", "Expected ']' at the end of a table declaration (at end of document)"),
    "unknown table": (STUDY + "[spaces.x]\n", "spaces: unknown table or key; did you mean 'space'?"),
    "unknown key": (STUDY + "trails = 1" + SPACE, "study.trails: unknown key; did you mean 'trials'?"),
    "key in capitals": (STUDY + "SEED = 1" + SPACE, "study.SEED: unknown key; did you mean 'seed'?"),
    "unknown key of data": (
        STUDY + SPACE + "[data]\nsource = 'x.csv'\ntaget = 'y'",
        "data.taget: unknown key; did you mean 'target'?",
    ),
    "seed in data": (STUDY + SPACE + "[data]\nsource = 'x.csv'\nseed = 1", "data.seed: unknown key; allowed are "),
    "unknown key of a parameter": (STUDY + SPACE + "stp = 1", "space.x.stp: unknown key; did you mean 'step'?"),
    "unknown setting": (
        STUDY + SPACE + "[efficiency]\nmax_wrkers = 1",
        "efficiency.max_wrkers: unknown key; did you mean 'max_workers'?",
    ),
    "wrong type": (
        STUDY + "[space.C]\ntype = 'float'\nmin = 0\nmax = 'x'",
        'space.C.max = "x": expected float, got str',
    ),
    "wrong type of a setting": (
        STUDY + SPACE + "[efficiency]\nenable_caching = 1",
        "efficiency.enable_caching = 1: expected bool, got int",
    ),
    "out of range": (
        STUDY + SPACE + "[efficiency]\nmax_workers = 0",
        "efficiency.max_workers = 0: allowed is at least 1",
    ),
    "not a number": (
        STUDY + SPACE + "[efficiency]\nsubsample_fraction = nan",
        "efficiency.subsample_fraction = nan: allowed is 0.0001 to 1",
    ),
    "bad ladder": (
        STUDY + SPACE + "[efficiency]\nladder = [{ fraction = 2.0, folds = 1 }]",
        "efficiency.ladder = [{fraction = 2.0, folds = 1}]: fraction = 2.0 must be above 0 and at most 1",
    ),
    "rung without a fold": (
        STUDY + SPACE + "[efficiency]\nladder = [{ fraction = 1.0, folds = 0 }]",
        "efficiency.ladder = [{fraction = 1.0, folds = 0}]: folds = 0 must be at least 1",
    ),
    "no trials": (STUDY.replace("10", "0") + SPACE, "study.trials = 0: expected int >= 1"),
    "no budget": (
        STUDY.replace("trials = 10", "") + SPACE,
        "study.trials, study.seconds and study.cpu_seconds are missing; give at least one of them",
    ),
    "no objective": ("[study]\ntrials = 1" + SPACE, "study.objective is missing"),
    "no space": (STUDY, "the search space is missing; give tables [space.NAME], or study.space as a function"),
    "empty space": (STUDY + "[space]", "the search space is empty; give at least one parameter"),
    "two spaces": (
        STUDY + "space = 's.py:s'" + SPACE,
        'study.space = "s.py:s": [space.NAME] stands there too; keep one',
    ),
    "space without a function": (
        STUDY + "space = 'missing.py:space'",
        "study.space: 'missing.py:space': there is no file",
    ),
    "space that is no table": ("space = 3\n" + STUDY, "space = 3: expected a table of parameters"),
    "parameter that is no table": (STUDY + "[space]\nx = 3", "space.x = 3: expected a table with type and range"),
    "no type": (STUDY + "[space.x]\nmin = 0", "space.x.type is missing; allowed are float, int, categorical"),
    "unknown type": (
        STUDY + "[space.x]\ntype = 'real'",
        'space.x.type = "real": allowed are float, int, categorical',
    ),
    "type that is a table": (
        STUDY + "[space.x.type]\na = 1",
        "space.x.type = {a = 1}: allowed are float, int, categorical",
    ),
    "no range": (STUDY + "[space.x]\ntype = 'float'\nmin = 0", "space.x.max is missing"),
    "inverted range": (
        STUDY + "[space.x]\ntype = 'float'\nmin = 2\nmax = 1",
        "space.x: min = 2.0 is above max = 1.0; min <= max is needed",
    ),
    "endless range": (
        STUDY + "[space.x]\ntype = 'float'\nmin = 0\nmax = inf",
        "space.x: min = 0.0 and max = inf must be finite",
    ),
    "step that does not fit": (
        STUDY + SPACE + "step = 3.0",
        "space.x: step = 3.0 is wider than the range from min = 0.0 to max = 1.0",
    ),
    "log of nothing": (STUDY + SPACE + "log = true", "space.x: log needs min > 0, got min = 0.0"),
    "no choices": (STUDY + "[space.x]\ntype = 'categorical'\nchoices = []", "space.x: choices must not be empty"),
    "a choice twice": (
        STUDY + "[space.x]\ntype = 'categorical'\nchoices = [1, 1]",
        "space.x: choices must be different, 1 stands twice",
    ),
    "a choice that is a list": (
        STUDY + "[space.x]\ntype = 'categorical'\nchoices = [[50], [50, 50]]",
        "space.x: the choice [50] is of type list; allowed are texts, numbers, booleans and None: choose among texts,",
    ),
    "unknown parent": (
        STUDY + SPACE + "when = { y = [1] }",
        "space.x.when names 'y'; allowed are the parameters above it: none",
    ),
    "unknown mode": (STUDY + "mode = 'quick'" + SPACE, 'study.mode = "quick": allowed are fast, balanced, thorough'),
    "unknown direction": (STUDY + "direction = 'up'" + SPACE, 'study.direction = "up": allowed are maximize, minimize'),
    "endless target": (STUDY + "target = inf" + SPACE, "study.target = inf: a finite number is needed"),
    "unknown resampling": (
        STUDY + SPACE + "[data]\nsource = 'x.csv'\n[resampling]\nkind = 'loo'",
        'resampling.kind = "loo": allowed are holdout, kfold, stratified, grouped, forward',
    ),
    "folds that do not go with the kind": (
        STUDY + SPACE + "[data]\nsource = 'x.csv'\n[resampling]\nkind = 'kfold'",
        "resampling: folds = 1 does not go with kind = 'kfold'; at least 2 are needed",
    ),
    "resampling without data": (
        STUDY + SPACE + "[resampling]\nkind = 'kfold'\nfolds = 3",
        "resampling needs a data set; give data.source",
    ),
    "data without a source": (STUDY + SPACE + "[data]\ntarget = 'y'", "data.source is missing"),
    "section that is no table": ("study = 3", "study = 3: expected a table"),
    "settings that are no table": ("efficiency = 3\n" + STUDY + SPACE, "efficiency = 3: expected a table"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_told_in_one_line(mistake: str, tmp_path: Path) -> None:
    text, expected = MISTAKES[mistake]
    path = write(tmp_path, text)

    with pytest.raises(ConfigurationError) as caught:
        load_study(path)

    message = str(caught.value)
    assert message.startswith(f"{path}: {expected}")
    assert "\n" not in message
    assert caught.value.exit_status == 2


def test_a_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b'\xef\xbb\xbfname = "\xc3\xa9"\r\n')
    assert read_toml(tmp_path / "marked.toml") == {"name": "é"}


def test_a_file_that_can_not_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=re.escape(f"{tmp_path / 'none.toml'}: No such file or directory")):
        load_study(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="is a folder; name the study file in it"):
        load_study(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"name = '\xe9'")
    with pytest.raises(ConfigurationError, match=r"latin.toml: byte 8 is not UTF-8, which TOML needs"):
        load_study(tmp_path / "latin.toml")


@pytest.mark.parametrize(
    ("section", "setting", "expected"),
    [
        (
            "study",
            Setting("trials", "many", "TRIALFLEET_TRIALS", is_text=True),
            'TRIALFLEET_TRIALS = "many": expected int',
        ),
        (
            "study",
            Setting("trails", "1", "--set study.trails"),
            "--set study.trails: unknown key; did you mean 'trials'?",
        ),
        ("efficiency", Setting("max_workers", "0", "--slots", is_text=True), '--slots = "0": allowed is at least 1'),
        (
            "efficiency",
            Setting("slots", "0", "--set efficiency.slots"),
            "--set efficiency.slots: unknown key; allowed are",
        ),
    ],
)
def test_a_mistake_beside_the_file_names_its_place(
    section: str, setting: Setting, expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_study(write(tmp_path, STUDY + SPACE), {section: [setting]})

    assert str(caught.value).startswith(expected)


def test_a_space_may_hold_distributions() -> None:
    space = read_space({"x": Float(0.0, 1.0), "y": {"type": "int", "min": 1, "max": 2}}, "search_space", prefix="")

    assert space.parameters == {"x": Float(0.0, 1.0), "y": Int(1, 2)}


def test_a_mistake_in_a_space_of_the_api_names_the_argument() -> None:
    with pytest.raises(ConfigurationError, match=re.escape('search_space: y.max = "2": expected int, got str')):
        read_space({"y": {"type": "int", "min": 1, "max": "2"}}, "search_space", prefix="")


def test_lists_may_be_set_as_toml_writes_them(tmp_path: Path) -> None:
    points = [Setting("points_to_evaluate", "[{ x = 0.5 }, { x = 1 }]", "--set study.points_to_evaluate", is_text=True)]
    ladder = [Setting("ladder", "[{ fraction = 1.0, folds = 1 }]", "--set efficiency.ladder", is_text=True)]
    study = load_study(write(tmp_path, STUDY + SPACE), {"study": points, "efficiency": ladder})
    assert [point.params for point in study.points_to_evaluate] == [{"x": 0.5}, {"x": 1.0}]
    assert study.config.ladder == (Rung(1.0, 1),)


@pytest.mark.parametrize("text", ["[{ x = ", "[1]", "x"])
def test_what_is_set_as_a_list_and_is_none_is_refused(text: str, tmp_path: Path) -> None:
    points = [Setting("points_to_evaluate", text, "--set study.points_to_evaluate", is_text=True)]
    with pytest.raises(ConfigurationError, match=r"--set study.points_to_evaluate = .*: expected (array|object), got"):
        load_study(write(tmp_path, STUDY + SPACE), {"study": points})


def test_a_study_is_given_so_many_points_at_most(tmp_path: Path) -> None:
    points = ", ".join(["{ x = 0.5 }"] * (MOST_POINTS + 1))
    with pytest.raises(ConfigurationError, match=r"study.points_to_evaluate = .*of length <= 10000"):
        load_study(write(tmp_path, STUDY + f"points_to_evaluate = [{points}]\n" + SPACE))
