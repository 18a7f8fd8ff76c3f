"""The commands of the `trialfleet` program, each imported when it is run."""
