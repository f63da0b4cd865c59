"""Records, importers, exporters, dataset versions, splits, chat rendering, preflight. No torch."""
