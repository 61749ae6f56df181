"""Which nodes are left out of later allocations."""

import pytest

from snakemake_executor_plugin_dask.batch.meanings import may_be_the_node
from snakemake_executor_plugin_dask.decide.badnodes import Nodes


def test_a_node_that_fails_again_where_others_work_is_bad() -> None:
    """One failure is not enough; the reason names count and cause."""
    nodes = Nodes()
    nodes.joined("c2")
    nodes.failed("c1", "exit code 3")
    assert nodes.bad() == {}
    nodes.failed("c1", "exit code 4")
    assert nodes.bad() == {"c1": "2 workers failed there in a row, and others work elsewhere; the last: exit code 4"}


def test_the_only_node_that_was_tried_is_left_out_on_trial() -> None:
    """Else the batch system gives it again and again; where the next one fails as well, it is not the node."""
    nodes = Nodes()
    for node in ("c1", "c1", "c2"):
        nodes.failed(node, "exit code 3")
    assert nodes.bad() == {}
    nodes = Nodes()
    nodes.failed("c1", "x")
    nodes.failed("c1", "x")
    assert "no other node was tried" in nodes.bad()["c1"]
    nodes.joined("c2")
    assert "others work elsewhere" in nodes.bad()["c1"]


def test_never_all_nodes() -> None:
    """Where the last good one fails, too, all of them are taken again."""
    nodes = Nodes()
    for node in ("c1", "c2", "c3"):
        nodes.joined(node)
    for node in ("c1", "c2", "c1", "c2"):
        nodes.failed(node, "x")
    assert list(nodes.bad()) == ["c1", "c2"]
    nodes.failed("c3", "x")
    nodes.failed("c3", "x")
    assert nodes.bad() == {}


def test_what_ended_as_planned_wipes_the_slate() -> None:
    """In a long run each node loses a worker now and then."""
    nodes = Nodes()
    nodes.joined("c1")
    nodes.joined("c2")
    nodes.failed("c1", "x")
    nodes.left("c1")
    nodes.failed("c1", "x")
    assert nodes.bad() == {}


def test_a_job_that_loses_its_worker_everywhere_is_to_blame_itself() -> None:
    """What failed under it counts for no node any more, but what failed under others does."""
    nodes = Nodes()
    for node in ("c1", "c2", "c3"):
        nodes.joined(node)
    nodes.failed("c1", "x", ["killer", "beside"])
    nodes.failed("c1", "x", ["killer"])
    assert list(nodes.bad()) == ["c1"]
    nodes.failed("c2", "x", ["killer"])
    assert nodes.bad() == {}
    nodes.failed("c3", "x", ["a"])
    nodes.failed("c3", "x", ["b"])
    assert list(nodes.bad()) == ["c3"]


def test_nodes_without_which_nothing_is_taken_are_used() -> None:
    """The batch system refused an allocation without them."""
    nodes = Nodes(all_needed=True)
    nodes.failed("c1", "x")
    nodes.failed("c1", "x")
    assert nodes.bad() == {}


@pytest.mark.parametrize(
    ("why", "wanted"),
    [
        ("allocation 7 ended (NonZeroExitCode)\nmodule: command not found", True),
        ("allocation 7 ended (NonZeroExitCode)\nconnection TIMEOUT, request CANCELLED", True),
        ("slurmstepd: error: *** JOB 7 ON c1 CANCELLED AT 10:00 DUE TO NODE FAILURE, SEE SLURMCTLD LOG ***", True),
        ("", True),
        ("allocation 7 ended (CANCELLED)", False),
        ("allocation 7 ended (TimeLimit)", False),
        ("slurmstepd: error: *** JOB 7 ON c1 CANCELLED AT 10:00 ***", False),
        ("slurmstepd: error: *** JOB 7 ON c1 CANCELLED AT 10:00 DUE TO PREEMPTION ***", False),
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.batch", False),
        ("TERM_OWNER: job killed by owner.", False),
    ],
)
def test_what_was_ended_by_others_is_no_nodes_fault(why: str, wanted: bool) -> None:
    """Somebody, or the clock, ended it; a node's own failure is told with the same words."""
    assert may_be_the_node(why) is wanted
