"""Modules as files, for tests of what imports them."""

from pathlib import Path

#: In place of the sleep of an objective that notes its calls in the file `calls` beside it: of the fourth call on, what has
#: begun goes on until the file `go` is there.
HELD = """while len((pathlib.Path(__file__).parent / "calls").read_text().splitlines()) >= 4:
        if (pathlib.Path(__file__).parent / "go").exists():
            break
        time.sleep(0.01)"""


def write(folder: Path, **files: str) -> Path:
    """Write each module's code into a folder, made if need be; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return folder
