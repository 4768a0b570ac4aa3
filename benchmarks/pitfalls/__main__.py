"""`python -m benchmarks.pitfalls`: measure the published defects, write JSON, print the tables."""

from __future__ import annotations

from benchmarks.pitfalls.command import EPILOG, NAME, measure
from benchmarks.printing import run_command


def main() -> None:
    """Run the command; a wrong request ends with exit code 2 and one line."""
    run_command(measure, NAME, EPILOG)


if __name__ == "__main__":
    main()
