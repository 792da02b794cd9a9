"""Fixtures of the billing tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from billing import journal


@pytest.fixture
def journal_directory(tmp_path: Path, settings: Any) -> Iterator[Path]:
    """An empty directory for the journal."""
    journal.close_own_file()
    settings.JOURNAL_DIR = str(tmp_path)
    yield tmp_path
    journal.close_own_file()
