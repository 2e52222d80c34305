"""The toy model, made once for all tests with real servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.deploy.files import passed
from tests.environments import program


@pytest.fixture(scope="session")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the toy model in both forms."""
    place = tmp_path_factory.mktemp("models")
    passed(program("routers", "python"), Path(__file__).with_name("toy.py"), place)
    return place
