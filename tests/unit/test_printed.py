"""What reaches a terminal holds nothing that acts there."""

import re
import sys
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snakemake_executor_plugin_dask.frontend import known, session, voice
from snakemake_executor_plugin_dask.model.messages import Level
from snakemake_executor_plugin_dask.model.printed import clean_block


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b[31mred\x1b[0m b", "ared b"),
        ("\x1b]0;title\x07x\x1b]8;;http://e\x1b\\y", "xy"),
        ("\x1bP1;2|payload\x1b\\x", "x"),
        ("\x1b(0x\x1bcx", "xx"),
        ("evil\rgood", "evil\ufffdgood"),
        ("\x9b31m", "\ufffd31m"),
        ("abc\u202edef\u2066", "abc\ufffddef\ufffd"),
        ("zero\u200bwidth", "zero\ufffdwidth"),
        ("name\udcff", "name\\udcff"),
        ("two\r\nlines\n\tÄ 中 🙂", "two\nlines\n    Ä 中 🙂"),
    ],
)
def test_what_a_terminal_would_obey_is_taken_out(text: str, shown: str) -> None:
    """Sequences go, single characters leave a mark, and what people write stays."""
    assert clean_block(text) == shown


@given(st.text() | st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
def test_nothing_harmful_is_left(text: str) -> None:
    """Whatever was printed; and cleaned once is clean."""
    cleaned = clean_block(text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]", cleaned)
    assert clean_block(cleaned) == cleaned
    cleaned.encode()


def test_every_sentence_of_a_run_is_cleaned() -> None:
    """Snakemake's logger and its errors get them from one place each, and from nowhere else."""
    said: list[str] = []
    levels: tuple[Level, ...] = ("debug", "info", "warning", "error")
    spoken = voice.Voice(SimpleNamespace(**dict.fromkeys(levels, said.append)))
    for level in levels:
        spoken.show(level, "a\x1b[1mb")
    assert said == ["ab"] * 4
    assert str(voice.as_error("a\x1b[1mb")) == "ab"
    for module, errors in ((voice, 1), (session, 0), (known, 0)):
        with open(sys.modules[module.__name__].__file__ or "", encoding="utf-8") as file:
            source = file.read()
        assert source.count("WorkflowError(") == errors
        assert "executor.logger." not in source
