"""Real tables to export, made by the write room from synthetic nuclei."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.export.tables import make_table
from tests.fetch.conftest import bucket  # noqa: F401  (a fixture)


@pytest.fixture(scope="session")
def table_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 nuclei at working scale 1, scanned area not at the slide's origin."""
    return make_table(tmp_path_factory.mktemp("table"), n=2000, bounds=(300, 200))


@pytest.fixture(scope="session")
def scaled_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 nuclei of a slide that was segmented at another resolution than its own."""
    return make_table(tmp_path_factory.mktemp("scaled"), n=300, mpp=0.5, scale=2.0)


@pytest.fixture(scope="session")
def wsiseg_data() -> Path:
    """Folder of real files too big or not free enough to ship; its path is in an environment variable."""
    folder = os.environ.get("WSISEG_DATA", "")
    if not folder:
        pytest.skip("WSISEG_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def excerpts() -> Path:
    """Folder of real files of other tools, shortened so that they can ship."""
    return Path(__file__).resolve().parents[1] / "data" / "formats"
