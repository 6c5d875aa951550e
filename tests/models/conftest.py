"""The trained model that these tests share with those of the pipeline: training it takes about a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import load_spec
from models.scorer import ClipScorer


@pytest.fixture(scope="session")
def tiny_folder(tiny_model: Path) -> Path:
    return Path(tiny_model)


@pytest.fixture(scope="session")
def tiny_scorer(tiny_folder: Path) -> ClipScorer:
    return ClipScorer(load_spec(tiny_folder), device="cpu")
