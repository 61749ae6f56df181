"""The short soak: a realistic workflow under random kills. The long one is ``python -m tests.soak --minutes 10``."""

from pathlib import Path

import pytest
from soak import soak


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_short_soak(tmp_path: Path) -> None:
    """Under random kills of a run's processes nothing is lost, wrong, run twice at once or left over."""
    findings = soak(tmp_path, jobs=150, minutes=0.7, kill_every_s=8, seed=1)
    assert not findings.wrong, "\n".join(findings.wrong)
    assert findings.seen
