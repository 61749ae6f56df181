"""Convert the two pages of Snakemake's plugin catalog as it does; exit code 1 where docutils warns of the result."""

import io
import sys
from pathlib import Path

import docutils.core
import m2r2

DOCS = Path(__file__).resolve().parents[1] / "docs"


def main() -> int:
    failed = False
    for name in ("intro.md", "further.md"):
        warnings = io.StringIO()
        converted = m2r2.convert((DOCS / name).read_text(encoding="utf-8"))
        docutils.core.publish_doctree(converted, settings_overrides={"warning_stream": warnings, "report_level": 2})
        if warnings.getvalue():
            print(f"{name}, converted for the plugin catalog:\n{warnings.getvalue()}", file=sys.stderr)
            failed = True
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
