"""Faults planted on purpose, to see that the tests of the formulas notice: `python -m tests.mutants`."""
