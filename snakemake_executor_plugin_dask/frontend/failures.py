"""The words in which a failed job is told. Pure."""

import signal

from snakemake_executor_plugin_dask.model.jobs import Outcome

#: How a worker's word about the job's own command begins; the exit code of the Snakemake around it then says no more.
COMMAND_ENDED = "its command "
#: How its word about the members of a group begins.
MEMBER = "in rule "

#: What to change, where the plugin's own limits ended a job.
_ADVICE = {
    "out-of-memory": "Let the rule ask for more mem_mb, or for more with each of its retries.",
    "out-of-time": "Let the rule ask for a longer runtime, or for a longer one with each of its retries.",
}


def explain(name: str, outcome: Outcome, runs: int = 1, message: str = "") -> str:
    """What ended the job, where, after how long, the last lines of its log and the log's path."""
    where = [f"on host {outcome.host}" if outcome.host else "", f"worker {outcome.worker}" if outcome.worker else ""]
    if outcome.allocation:
        where.append(f"allocation {outcome.allocation}")
    if outcome.started and outcome.ended:
        where.append(f"after {_duration(outcome.ended - outcome.started)}")
    place = ", ".join(part for part in where if part)
    text = f"Job of {name}: {message or _cause(outcome)}" + (f" ({place})" if place else "")
    if advice := "" if message else _ADVICE.get(outcome.status, ""):
        text = f"{text.removesuffix('.')}. {advice}"
    if runs > 1:
        text += f" It was run {runs} times."
    for path, tail in (*outcome.rule_logs, ("its log", outcome.log_tail)):
        text += _last_lines(path, tail)
    if outcome.log_path and outcome.status != "not-started":
        text += f"\nIts log: {outcome.log_path}"
    return text + "\n"


def not_started_text(count: int) -> str:
    """What is said of jobs that waited when Snakemake stopped."""
    if count == 1:
        return "1 job that waited was not started; its outputs are as they were before."
    return f"{count} jobs that waited were not started; their outputs are as they were before."


def queue_text(rule: str) -> str:
    """Why a rule's job cannot run on a worker: its own Snakemake would wait for the queue's items for ever."""
    return (
        f"Rule {rule} takes its input from a queue (from_queue), which only Snakemake's own process can read; list it "
        "under localrules, and keep it out of groups."
    )


def not_accepted_text(name: str, outcome: Outcome) -> str:
    """What is said of a job that ended well, but of whose outputs Snakemake has just complained."""
    # Where the log was on its node alone it went with the job.
    log = _last_lines("its log", outcome.log_tail) or f" Its log: {outcome.log_path}"
    return (
        f"Job of {name}: its process ended without an error (on host {outcome.host}, worker {outcome.worker}), but "
        f"Snakemake did not accept its output files, as said above.{log}"
    )


def _last_lines(of: str, tail: str) -> str:
    if not tail.strip():
        return ""
    lines = "\n".join(f"    {line}" for line in tail.splitlines())
    return f"\nThe last lines of {of}:\n{lines}"


def _cause(outcome: Outcome) -> str:
    detail = f" {outcome.detail}" if outcome.detail else ""
    match outcome.status:
        case "out-of-time" | "out-of-memory" | "not-started" | "lost" if outcome.detail:
            return outcome.detail
        case "cancelled":
            return f"it was cancelled.{detail}"
    if outcome.status == "failed" and outcome.detail.startswith(COMMAND_ENDED):
        return f"{outcome.detail}."
    if outcome.status == "failed" and outcome.detail.startswith(MEMBER) and outcome.signal is None:
        return f"it failed with exit code {outcome.exit_code} {outcome.detail}."
    if outcome.signal is not None:
        return f"it was ended by signal {outcome.signal} ({_signal_name(outcome.signal)}).{detail}"
    return f"it failed with exit code {outcome.exit_code}.{detail}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
