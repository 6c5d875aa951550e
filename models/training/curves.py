"""Training curves: a CSV for scripts, and TensorBoard's files where TensorBoard is installed."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

COLUMNS = ("stage", "step", "loss", "accuracy", "learning_rate", "seconds")
AVERAGED = 20  # steps per point: single batches say little


class Curves:
    """Appends points to RUN/curves.csv and RUN/tensorboard/."""

    def __init__(self, out: Path) -> None:
        out.mkdir(parents=True, exist_ok=True)
        path = out / "curves.csv"
        fresh = not path.exists()
        self._file = path.open("a", newline="", encoding="utf-8")
        self._csv = csv.writer(self._file)
        if fresh:
            self._csv.writerow(COLUMNS)
        self._board = _board(out / "tensorboard")
        self._points: list[tuple[float, float]] = []
        self._began = time.monotonic()

    def step(self, stage: str, step: int, loss: float, accuracy: float, rate: float) -> None:
        """Take one step's figures; every AVERAGED steps their means are written."""
        self._points.append((loss, accuracy))
        if len(self._points) < AVERAGED:
            return
        loss, accuracy = (sum(values) / len(values) for values in zip(*self._points, strict=True))
        self._points.clear()
        seconds = time.monotonic() - self._began
        self._csv.writerow([stage, step, f"{loss:.5f}", f"{accuracy:.4f}", f"{rate:.4f}", f"{seconds:.1f}"])
        self._file.flush()
        if self._board is not None:
            self._board.add_scalar(f"{stage}/loss", loss, step)
            self._board.add_scalar(f"{stage}/accuracy", accuracy, step)

    def figure(self, stage: str, name: str, value: float) -> None:
        """A single figure of a stage, such as an AUC."""
        if self._board is not None:
            self._board.add_scalar(f"{stage}/{name}", value, 0)

    def close(self) -> None:
        """Flush and close both."""
        self._file.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError:  # the [train] extra is not installed: the CSV holds the same
        return None
    return SummaryWriter(str(folder))
