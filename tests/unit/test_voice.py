"""What Snakemake's process says reaches the event log, before and after there is a driver."""

from types import SimpleNamespace

from snakemake_executor_plugin_dask.frontend.voice import Voice
from snakemake_executor_plugin_dask.model.messages import Say


def test_what_is_said_is_kept_once() -> None:
    """Early sentences come first, in their order; what is only shown is not kept."""
    shown: list[str] = []
    kept: list[object] = []
    voice = Voice(SimpleNamespace(**dict.fromkeys(("debug", "info", "warning", "error"), shown.append)))
    voice.warning("early")
    voice.show("info", "from the driver")
    voice.kept_by(kept.append)
    voice.error("late")
    assert shown == ["early", "from the driver", "late"]
    assert kept == [Say("warning", "early"), Say("error", "late")]
