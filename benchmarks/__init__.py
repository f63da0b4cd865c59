"""Measurements of Trueward against its peers and its own targets; the package does not import them."""
