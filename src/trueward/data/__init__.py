"""Records, importers, exporters, dataset versions, splits, chat rendering, preflight. No torch.

Import from the modules: pyarrow, which only importing needs, takes a fifth of a second to load.
"""
