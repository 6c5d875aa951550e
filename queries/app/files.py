"""The files that the page shows: as many as somebody may still look at."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def forget_oldest(folder: Path, keep: int) -> None:
    """Remove the files of a folder that were written longest ago, all but `keep`."""
    with suppress(FileNotFoundError):  # another session is at it
        files = sorted((file.stat().st_mtime, file) for file in folder.iterdir())
        for _, file in files[: max(0, len(files) - keep)]:
            file.unlink()
