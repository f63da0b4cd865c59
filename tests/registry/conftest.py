"""One world for all tests that only read, and a fresh one for those that write."""

from pathlib import Path

import pytest

from tests.registry.world import World, make_world


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Shared: do not write into it."""
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def own_world(tmp_path: Path) -> World:
    """A world of the test's own."""
    return make_world(tmp_path)
