"""Simulate many schedules, or one again: `python -m simulation --help`, in tests/."""

import sys

from simulation.campaign import main

if __name__ == "__main__":
    sys.exit(main())
