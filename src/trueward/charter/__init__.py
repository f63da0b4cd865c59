"""The charter: the written values, hazards, operating points and gates a model is held to. No torch."""

from trueward.charter.load import default_charter_path, load_charter
from trueward.charter.model import Charter, Criterion, Dimension, Hazard, Level, OperatingPoint, Principle

__all__ = [
    "Charter",
    "Criterion",
    "Dimension",
    "Hazard",
    "Level",
    "OperatingPoint",
    "Principle",
    "default_charter_path",
    "load_charter",
]
