"""What is shown on a terminal, cleaned of what would act there. Pure.

Texts of batch systems, of jobs and of file names end up in sentences for the user. A terminal would obey what they
hold: colours at best, at worst a line that looks like another program's, or a name that reads backwards.
"""

import re

#: Control characters, those that turn writing direction or show nothing, and line separators other than a line feed.
_HARMFUL = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]"
)
_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|[]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])")


def without_sequences(text: str) -> str:
    """Text without terminal sequences (colours, cursor movements, titles)."""
    return _ANSI.sub("", text)


def clean_block(text: str) -> str:
    """Text of several lines without control characters or terminal sequences. What cannot be encoded is an escape."""
    text = without_sequences(text.replace("\r\n", "\n").replace("\t", "    "))
    text = _HARMFUL.sub("\N{REPLACEMENT CHARACTER}", text)
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
