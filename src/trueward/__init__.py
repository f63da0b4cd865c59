"""Trueward aligns language models with a written charter and proves what it did.

Importing this module is cheap: nothing here reaches torch. The stages live in `trueward.pipeline`.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
