"""The lease: when it runs out, and which renewals count."""

import pytest

from snakemake_executor_plugin_dask.worker.supervisor.lease import LeaseClock


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def lease(length=60.0):
    clock = Clock()
    return LeaseClock(length, clock), clock


def test_lease_runs_out_without_renewals():
    """The length counts from the start."""
    held, clock = lease()
    clock.now += 59
    assert held.remaining_s() == 1
    clock.now += 2
    assert held.remaining_s() < 0


def test_renewal_starts_the_length_again():
    """A renewal that the worker passes on counts from its arrival."""
    held, clock = lease()
    clock.now += 30
    held.renew()
    assert held.remaining_s() == 60


def test_renewal_after_the_end_does_not_revive():
    """Whoever stood still for longer than the lease finds it gone, whatever waits in the buffer."""
    held, clock = lease()
    clock.now += 61
    held.renew()
    held.renew(5)
    assert held.remaining_s() < 0


def test_renewal_that_was_held_up_counts_from_when_it_was_due():
    """Number 3 comes 50 s late: the driver counts from its sending, and so does the lease."""
    held, clock = lease()
    held.renew(0, earliest=clock.now)
    clock.now += 5
    held.renew(41)
    assert held.remaining_s() == 60
    clock.now += 55
    held.renew(42)
    assert held.remaining_s() == 12


def test_regular_renewals_with_drift_count_in_full():
    """Renewals that come a little later each time, as timers do, do not wear the lease down."""
    held, clock = lease()
    for number in range(1, 1000):
        clock.now += 5.3
        held.renew(number)
        assert held.remaining_s() == pytest.approx(60)


def test_numbers_that_were_skipped_allow_more_time():
    """A renewal after several that were not sent counts from its arrival."""
    held, clock = lease()
    clock.now += 5
    held.renew(1)
    clock.now += 20
    held.renew(5)
    assert held.remaining_s() == 60


def test_new_connection_counts_from_the_hello():
    """The answer to a new connection was sent after the connection was asked for, no earlier and perhaps not later."""
    held, clock = lease()
    clock.now += 30
    asked = clock.now - 4
    held.renew(0, earliest=asked)
    assert held.remaining_s() == 56
