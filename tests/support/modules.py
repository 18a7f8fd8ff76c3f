"""Modules as files, for tests of what imports them."""

from pathlib import Path


def write(folder: Path, **files: str) -> Path:
    """Write each module's code into a folder, made if need be; the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.py").write_text(content)
    return folder
