"""The dashboard's plan and the names of tasks on it."""

import os
import stat
from typing import Any

import pytest
from dask.utils import key_split
from hypothesis import example, given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.config.dashboard import parse_dashboard, scheduler_options
from snakemake_executor_plugin_dask.model.jobs import task_group, task_key
from snakemake_executor_plugin_dask.model.options import DashboardAddress
from snakemake_executor_plugin_dask.node.private import write_private


def served(setting: str) -> dict[str, Any]:
    return scheduler_options(parse_dashboard(setting, have_bokeh=True), lambda: "s3cret")


def test_none_means_no_server():
    """Without the setting no address and no path exists."""
    assert served("none") == served("") == {"dashboard": False}


@pytest.mark.parametrize(
    ("setting", "address"),
    [
        ("auto", "127.0.0.1:0"),
        ("AUTO", "127.0.0.1:0"),
        ("8787", "127.0.0.1:8787"),
        (":8787", "127.0.0.1:8787"),
        ("0.0.0.0:8787", "0.0.0.0:8787"),
        ("login-1.cluster:99", "login-1.cluster:99"),
        ("[::1]:99", "[::1]:99"),
    ],
)
def test_addresses_are_served_under_the_secret(setting, address):
    """Each form of an address gets the secret path; one without a host stays on loopback."""
    assert served(setting) == {"dashboard": True, "dashboard_address": address, "http_prefix": "/s3cret"}


@pytest.mark.parametrize("setting", ["yes please", "host", "host:", "host:70000", "http://x:1", "a b:1", "-1"])
def test_other_settings_are_refused(setting):
    """What is no address is named, with what would be one."""
    with pytest.raises(ValueError, match=r"127\.0\.0\.1:8787"):
        served(setting)


def test_missing_bokeh_is_one_sentence_with_the_command():
    """Who lacks bokeh learns how to get it, and only who asked for the dashboard."""
    with pytest.raises(ValueError, match=r"pip install 'snakemake-executor-plugin-dask\[dashboard\]'"):
        parse_dashboard("auto", have_bokeh=False)
    assert parse_dashboard("none", have_bokeh=False) is None


def test_secrets_differ_and_are_long():
    """Two runs never share a path, and it cannot be guessed."""
    first, second = (scheduler_options(DashboardAddress("127.0.0.1"))["http_prefix"] for _ in range(2))
    assert first != second
    assert len(first) > 32


def test_link_file_is_private_even_over_an_open_one(tmp_path):
    """The file with the link is readable by its owner alone, also where one with wider rights stood before."""
    path = tmp_path / "dashboard"
    path.write_text("old")
    path.chmod(0o666)
    write_private(path, b"http://127.0.0.1:1/s/status\n")
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert path.read_text() == "http://127.0.0.1:1/s/status\n"


RULES = st.one_of(
    st.text(max_size=120),
    st.text("abcdef0123456789-", min_size=1, max_size=40),
    st.from_regex(r"[a-z_]{1,9}(-[a-z0-9]{1,9}){0,3}", fullmatch=True),
)


@given(RULES, st.from_regex(r"[a-z0-9]{8}", fullmatch=True), st.integers(0, 10**6), st.integers(1, 9))
@example("1", "abcdefgh", 1, 1)
@example("map-abcdefab", "aaaaaaaa", 1, 1)
@example("sort-bamfiles", "aaaaaaaa", 1, 1)
@example("ae05086432ca935f6eba409a8ecd4896", "00000000", 1, 1)
@example("_hidden", "a1a1a1a1", 1, 1)
@example("('x', 1)", "a1a1a1a1", 1, 1)
@example("<a b>", "a1a1a1a1", 1, 1)
@example("", "a1a1a1a1", 1, 1)
@example("x\udcff", "a1a1a1a1", 1, 1)
def test_dask_groups_keys_by_rule(rule, run_id, jobid, attempt):
    """Dask's own splitting gives the rule's group back for every key of a rule, whatever its name is."""
    assert key_split(task_key(rule, run_id, jobid, attempt, 1)) == task_group(rule)


@pytest.mark.parametrize("rule", ["align", "align_2", "step1", "Größe", "hello-world", "deadbeef"])
def test_ordinary_names_stay_as_they_are(rule):
    """A rule keeps its name on the dashboard where Dask reads it rightly."""
    assert task_group(rule) == rule


@given(st.lists(RULES, min_size=2, max_size=2, unique=True))
@example(["_hidden", "hidden"])
@example(["a-1", "a_1"])
def test_groups_of_two_rules_differ(rules):
    """No two rules fall into one group."""
    assert task_group(rules[0]) != task_group(rules[1])


def test_keys_of_attempts_differ():
    """A retry, a second run after a lost worker, and another job each have a key of their own."""
    keys = {task_key("a", "run00000", *rest) for rest in [(1, 1, 1), (1, 1, 2), (1, 2, 1), (2, 1, 1)]}
    assert len(keys) == 4
