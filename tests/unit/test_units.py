"""Sizes, durations and ranges as people write them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.model import units

PARSERS = (units.parse_memory_mb, units.parse_duration_s, units.parse_seconds, units.parse_range, units.parse_count)


@pytest.mark.parametrize(
    ("text", "memory_mb"),
    [
        ("180 GB", 180_000),
        ("16GiB", 17_179),
        ("500MB", 500),
        ("500 mb", 500),
        ("1.5 GB", 1500),
        ("2G", 2000),
        ("2Gi", 2147),
        ("1TB", 1_000_000),
        ("1 MiB", 1),
        ("1000 kB", 1),
        ("1000000 B", 1),
        ("0.3 GB", 300),
        (" 4 GB ", 4000),
    ],
)
def test_memory(text: str, memory_mb: int) -> None:
    """Sizes are read with Dask's units and become 10^6 bytes, rounded down."""
    assert units.parse_memory_mb(text) == memory_mb


@pytest.mark.parametrize(
    "text", ["180", "16e9", 16, 1.5, "0", "", "GB", "1 XB", "1 GB 5", "-1 GB", "999 kB", "1,5 GB", "\u0661GB"]
)
def test_memory_refused(text: object) -> None:
    """A size that could mean two things, or nothing, is refused."""
    with pytest.raises(ValueError):
        units.parse_memory_mb(text)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("45s", 45),
        ("1.5 h", 5400),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("2 hours", 7200),
        ("30 min", 1800),
        ("1d", 86_400),
        ("1w", 604_800),
        ("04:00:00", 14_400),
        ("100:00:00", 360_000),
        ("1-12:00:00", 129_600),
        ("1-12", 129_600),
        ("2-00:30", 174_600),
    ],
)
def test_duration(text: str, seconds: float) -> None:
    """Durations are read with units, as a clock, and as Slurm's days."""
    assert units.parse_duration_s(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "0s", "0h", "00:00:00", "1:20", "4:00", "1h 2h", "30m 1h", "h", "2x", "-2h", "1-25:00:00", "1:60:00", "1e2h"],
)
def test_duration_refused(text: str) -> None:
    """Two parts with a colon, units out of order, and no time at all are refused."""
    with pytest.raises(ValueError):
        units.parse_duration_s(text)


@pytest.mark.parametrize(
    ("number", "written"), [(43200, "12:00:00"), ("43200", "12:00:00"), ("80", "1:20"), (5400, "1:30:00")]
)
def test_bare_number_explains_base_60(number: object, written: str) -> None:
    """A number without a unit may have been a time with colons, and the complaint says so."""
    with pytest.raises(ValueError, match="has no unit") as raised:
        units.parse_duration_s(number)
    assert f"unquoted {written} as" in str(raised.value)


def test_small_bare_number() -> None:
    """A number that no time with colons makes is refused without the hint."""
    with pytest.raises(ValueError, match="has no unit; write"):
        units.parse_duration_s("30")


@pytest.mark.parametrize(("value", "seconds"), [("60", 60), (60, 60), ("0", 0), ("1.5", 1.5), ("2m", 120)])
def test_seconds(value: object, seconds: float) -> None:
    """Where a number of seconds is meant, it needs no unit but may have one."""
    assert units.parse_seconds(value) == seconds


@pytest.mark.parametrize("value", ["-1", "nan", "inf", "1e999", True, "", "1:20"])
def test_seconds_refused(value: object) -> None:
    """Negative and endless numbers are refused."""
    with pytest.raises(ValueError):
        units.parse_seconds(value)


@pytest.mark.parametrize(("value", "bounds"), [("4", (4, 4)), (4, (4, 4)), ("0-10", (0, 10)), ("2 - 5", (2, 5))])
def test_range(value: object, bounds: tuple[int, int]) -> None:
    """One number is both ends of its range."""
    assert units.parse_range(value) == bounds


@pytest.mark.parametrize("value", ["", "0", "0-0", "5-2", "-3", "1-", "0:10", "1.5", 1.5, True, None])
def test_range_refused(value: object) -> None:
    """A range that holds no worker, or is none, is refused."""
    with pytest.raises(ValueError):
        units.parse_range(value)


@pytest.mark.parametrize("value", ["0", "-1", "1.0", "one", "", True, None])
def test_count_refused(value: object) -> None:
    """Only whole numbers from the least one on are counts."""
    with pytest.raises(ValueError):
        units.parse_count(value, 1)


@given(st.integers(1, 10**9))
def test_memory_round_trip(memory_mb: int) -> None:
    """What a message shows is read back to within its last digit, and exactly where it is a whole unit."""
    back = units.parse_memory_mb(units.format_memory(memory_mb))
    assert abs(back - memory_mb) <= memory_mb * 0.01
    if memory_mb < 10_000 or (memory_mb % 1000 == 0 and memory_mb < 10_000_000):
        assert back == memory_mb


@given(st.integers(1, 10**8))
def test_duration_round_trip(seconds: int) -> None:
    """A duration in whole seconds is shown so that it is read back as it was."""
    assert units.parse_duration_s(units.format_duration(seconds)) == seconds


@given(st.integers(0, 10**6), st.integers(1, 10**6))
def test_range_round_trip(least: int, more: int) -> None:
    """A range is shown so that it is read back as it was."""
    assert units.parse_range(units.format_range(least, least + more)) == (least, least + more)


@given(st.one_of(st.text(), st.integers(), st.floats(), st.none(), st.from_regex(r"[0-9:.-]+ ?[a-zA-Z]*")))
def test_garbage(value: object) -> None:
    """Whatever is given, a parser answers with a sensible value or with ValueError."""
    for parse in PARSERS:
        try:
            result = parse(value)  # type: ignore[operator]
        except ValueError:
            continue
        numbers = result if isinstance(result, tuple) else (result,)
        assert all(math.isfinite(number) and number >= 0 for number in numbers)
