"""The trained model that these tests share: training it takes about a minute."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.registry import load_spec
from models.scorer import ClipScorer
from tests.tiny_model import train_tiny_model


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny_model(tmp_path_factory.mktemp("tiny-model"))


@pytest.fixture(scope="session")
def tiny_scorer(tiny_folder: Path) -> ClipScorer:
    return ClipScorer(load_spec(tiny_folder), device="cpu")
