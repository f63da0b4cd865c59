"""Tests of the objectives: hand values, float64 oracles, invariances, gradient checks, extremes, errors."""
