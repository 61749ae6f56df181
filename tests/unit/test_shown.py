"""What is shown of a run time after time takes a bounded share of the time."""

from snakemake_executor_plugin_dask.driver.shown import Pace


class Clocks:
    """Both of a pace's clocks."""

    def __init__(self) -> None:
        self.now = self.spent = 0.0

    def pace(self, share: float) -> Pace:
        return Pace(share, lambda: self.now, lambda: self.spent)


def test_what_takes_no_time_is_done_whenever_it_is_asked_for() -> None:
    """A small run is looked at every second."""
    clocks = Clocks()
    pace = clocks.pace(0.02)
    for _ in range(3):
        assert pace.due
        with pace:
            clocks.spent += 0.01
        assert not pace.due  # within the same second nobody asks
        clocks.now += 1.0


def test_what_takes_long_is_done_seldom() -> None:
    """Half a second of CPU time at a fiftieth of the time: every 25 s, however often it is asked for."""
    clocks = Clocks()
    pace = clocks.pace(0.02)
    done = []
    for second in range(100):
        clocks.now = float(second)
        if pace.due:
            done.append(second)
            with pace:
                clocks.spent += 0.5
    assert done == [0, 25, 50, 75]
