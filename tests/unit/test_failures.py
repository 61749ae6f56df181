"""The words in which a failed job is told."""

from snakemake_executor_plugin_dask.frontend.failures import explain
from snakemake_executor_plugin_dask.model.jobs import GroupMember, Outcome, job_text


def test_exit_code() -> None:
    """Exit code, host, worker, duration, log tail and path stand in the message."""
    outcome = Outcome(
        "k",
        "failed",
        worker="cpu-1",
        host="n7",
        exit_code=3,
        started=100.0,
        ended=112.5,
        log_path="/l/a.log",
        log_tail="one\ntwo",
    )
    assert explain("align", outcome) == (
        "Job of align: it failed with exit code 3. (on host n7, worker cpu-1, after 12.5 s)\n"
        "The last lines of its log:\n    one\n    two\nIts log: /l/a.log\n"
    )


def test_member_of_a_group() -> None:
    """The member that failed is named, also where no command of its own did."""
    group = Outcome("k", "failed", exit_code=1, detail="in rule c (output c.txt)", allocation="17", host="n1")
    assert explain("pair", group) == (
        "Job of pair: it failed with exit code 1 in rule c (output c.txt). (on host n1, allocation 17)\n"
    )


def test_rules_own_log() -> None:
    """What the rule's own log files end with comes before what else was written."""
    text = explain("a", Outcome("k", "failed", exit_code=1, rule_logs=(("/w/a.log", "reason"),), log_tail="more"))
    assert text.endswith("\nThe last lines of /w/a.log:\n    reason\nThe last lines of its log:\n    more\n")


def test_a_job_as_people_know_it() -> None:
    """A rule with its wildcards; a group with some of its members."""
    assert job_text("align", {}) == "align"
    assert job_text("align", (("sample", "a"), ("lane", "3"))) == "align (sample=a, lane=3)"
    members = [GroupMember("align", str(n), (("n", str(n)),)) for n in range(4)]
    text = "g (4 jobs: align (n=0), align (n=1), align (n=2), and 1 more)"
    assert job_text("g", {}, members) == text


def test_signal() -> None:
    """A signal is named."""
    assert "ended by signal 9 (SIGKILL)" in explain("a", Outcome("k", "failed", signal=9))


def test_limits_speak_for_themselves() -> None:
    """Where the supervisor has a sentence of its own, it is the message."""
    text = explain("a", Outcome("k", "out-of-memory", detail="It used 900 MB of 500 MB."))
    assert text.startswith("Job of a: It used 900 MB of 500 MB.")


def test_runs_are_counted() -> None:
    """A job that ran more than once says so; the driver's own message wins."""
    text = explain("a", Outcome("k", "lost", detail="gone"), runs=3, message="It lost its worker 3 times.")
    assert text.startswith("Job of a: It lost its worker 3 times.")
    assert "It was run 3 times." in text


def test_long_durations() -> None:
    """Minutes and hours are written out."""
    assert "after 2 min 5 s" in explain("a", Outcome("k", "failed", exit_code=1, started=1.0, ended=126.0))
    assert "after 3 h 0 min" in explain("a", Outcome("k", "failed", exit_code=1, started=1.0, ended=10801.0))


def test_limits_say_what_to_change() -> None:
    """Who exceeded a limit is told what the rule can ask for; others are not."""
    text = explain("a", Outcome("k", "out-of-memory", host="n7", detail="memory of 606 MB exceeded the limit"))
    assert text.startswith(
        "Job of a: memory of 606 MB exceeded the limit (on host n7). Let the rule ask for more mem_mb"
    )
    assert "runtime" in explain("a", Outcome("k", "out-of-time", detail="it ran for 6 min"))
    assert "Let the rule" not in explain("a", Outcome("k", "failed", exit_code=1))
