"""Checks of a GPU: is everything right on it, how fast is it beside the peers, and where does the time go?

The most important checks come first. Each has an estimate of its seconds; one that would exceed the budget is skipped
and named, so that a few minutes of a machine give the most important figures. Results are written after each check.
"""

from .plan import ROOT, Check, Plan
from .report import update_docs
from .running import checks, run

__all__ = ['ROOT', 'Check', 'Plan', 'checks', 'run', 'update_docs']
