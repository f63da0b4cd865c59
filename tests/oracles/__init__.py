"""Independent oracles in float64: plain Python loops written from the papers, not from the package.

They take nested lists and return nested lists. They are slow, handle no extremes, and import nothing of
trueward.
"""
