"""How the tests are dealt out to the processes of pytest-xdist."""

import os

import pytest


@pytest.fixture(scope="module")
def costly() -> None:
    """Stands for a batch system."""


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs all tests")
def test_what_shares_a_costly_fixture_stays_in_one_process(costly: None, request: pytest.FixtureRequest) -> None:
    """pytest-xdist has seen the group: it stands at the end of the test's name."""
    assert request.node.nodeid.endswith("@test_groups-costly")
