"""Amounts, added, subtracted and compared."""

from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model.amounts import NOTHING, UNKNOWN, Amounts
from snakemake_executor_plugin_dask.model.jobcluster import JobCluster
from snakemake_executor_plugin_dask.model.pools import Shape

few = st.integers(0, 3)
amounts = st.builds(
    Amounts,
    few,
    few,
    few,
    few,
    few,
    st.dictionaries(st.sampled_from("ab"), few).map(lambda d: tuple(sorted(d.items()))),
)


@given(amounts, amounts)
def test_what_is_taken_comes_back(one: Amounts, other: Amounts) -> None:
    """And what is taken fits into what it was taken from together with the rest."""
    assert (one + other - other) + NOTHING <= one
    assert one <= one + other
    assert one * 2 + other == other + one + one


@given(amounts, amounts)
def test_it_fits_where_nothing_is_short(one: Amounts, other: Amounts) -> None:
    """The comparison that is spelt out agrees with those that name what is short and count how often it fits."""
    fits = one <= other
    assert fits == (not one.short_of(other))
    times = one.times_in(other)
    assert fits == (times >= 1)
    if times < UNKNOWN:
        assert one * times <= other
        assert not one * (times + 1) <= other


def test_what_is_not_asked_for_is_not_looked_at() -> None:
    """A worker that is overbooked in memory has room for a job that takes none."""
    overbooked = Amounts(cores=2, memory_mb=-5, extra=(("licence", -1),))
    assert Amounts(cores=2) <= overbooked
    assert Amounts(cores=2, memory_mb=1).short_of(overbooked) == ("memory_mb",)
    assert Amounts(extra=(("licence", 1), ("other", 1))).short_of(overbooked) == ("licence", "other")


def test_the_largest_part_of_a_worker() -> None:
    """By which jobs are packed, the largest first."""
    worker = Amounts(cores=8, memory_mb=1000, gpus=0)
    assert Amounts(cores=2, memory_mb=500).share_of(worker) == 0.5
    assert Amounts(gpus=1).share_of(worker) == float("inf")
    assert NOTHING.share_of(worker) == 0


def test_what_is_not_known_is_enough() -> None:
    """Of a worker that nobody has seen yet."""
    assert Amounts(cores=10**6, memory_mb=10**9, gpus=8, coreless=1) <= Shape().amounts
    assert JobCluster(4, 2, 1000).fitting(Shape(cores=7).amounts) == 3
    assert JobCluster(4, 2, 1000).fitting(Shape(cores=2).amounts) == 0
