"""What the commands of the `trialfleet` program do, each imported when it is run; `declared` has their names and options."""
