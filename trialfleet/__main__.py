"""`python -m trialfleet`."""

from trialfleet.cli import main

main()
