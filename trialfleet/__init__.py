"""trialfleet: hyperparameter optimisation for a fleet of CPU machines."""
