"""What every other package stands on: errors, configuration, files, runs, metrics, statistics. No torch."""
