"""Jobs that become ready soon, and those that never will."""

from snakemake_executor_plugin_dask.decide.lookahead import LookAhead
from snakemake_executor_plugin_dask.model.messages import Later
from snakemake_executor_plugin_dask.model.requests import Request

ONE, TWO = Request(1), Request(2)


def test_what_waits_for_a_job_counts_until_it_is_handed_over() -> None:
    """A job that waits for two counts until both are done."""
    ahead = LookAhead()
    ahead.add("cpu", Later(ONE, ("a",)))
    ahead.add("cpu", Later(ONE, ("a", "b")))
    ahead.add("gpu", Later(TWO, ("b",)))
    assert (ahead.of("cpu"), ahead.of("gpu"), ahead.of("other")) == (((ONE, 2),), ((TWO, 1),), ())
    ahead.ended("a", succeeded=True)
    assert ahead.of("cpu") == ((ONE, 1),)
    ahead.ended("b", succeeded=True)
    assert (ahead.of("cpu"), ahead.of("gpu")) == ((), ())


def test_what_waits_for_a_failed_job_is_not_waited_for() -> None:
    """Whatever else it waits for; a key that nothing waits for is none."""
    ahead = LookAhead()
    ahead.add("cpu", Later(ONE, ("a", "b")))
    ahead.ended("a", succeeded=False)
    assert ahead.of("cpu") == ()
    ahead.ended("b", succeeded=True)
    ahead.ended("c", succeeded=True)
    assert ahead.of("cpu") == ()
