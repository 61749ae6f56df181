"""The benchmarks: ``./run bench [NAME] [OPTIONS]``. Without a name: those marked with *, one after the other.

Each prints ratios of what was measured in one run on one machine; docs/benchmarks.md says what the rows mean.
"""

import ast
import runpy
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = ("dispatch", "job_start", "queue_memory", "schedules", "slurm")
HELPERS = ("__main__", "census", "harness", "simulated", "stubbed", "stub_warm", "synthetic")


def main() -> int:
    places = {path.stem: path for path in HERE.glob("*.py") if path.stem not in HELPERS}
    places |= {path.parent.name: path for path in HERE.glob("*/__main__.py")}
    names = sorted(places)
    chosen = sys.argv[1:]
    if chosen and chosen[0] in ("-h", "--help"):
        print(__doc__)
        for name in names:
            text = ast.get_docstring(ast.parse(places[name].read_text())) or ""
            print(f"  {name + (' *' if name in FIGURES else ''):<16}{text.splitlines()[0]}")
        print("\n./run bench NAME --help lists a benchmark's own options.")
        return 0
    if chosen and chosen[0] not in names:
        print(f"There is no benchmark {chosen[0]}; there are {', '.join(names)}.", file=sys.stderr)
        return 2
    for name in chosen[:1] or FIGURES:
        sys.argv = [str(places[name]), *chosen[1:]]
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
