"""What all tests share: no network, one thread, and the data that may lie beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Hypothesis' deadlines are wall-clock time, which a busy machine stretches at will.
settings.register_profile("distill", deadline=None)
settings.load_profile("distill")

# Before torch or huggingface_hub are imported, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real problems, traces and labelled answers (`../shared/data`); skips where they are not."""
    folder = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder}")
    return folder
