"""One check of an accelerator: is everything right on it, how fast is it beside the peers, and where does the time go?

The checks are ordered by what they tell. Each has an estimate of its seconds, and one that would outlast the budget is
left out by name, so that a short loan of a machine gives the most important figures. What is found is written after
each check.
"""

from .plan import ROOT, Check, Plan
from .report import update_docs
from .running import checks, run

__all__ = ['ROOT', 'Check', 'Plan', 'checks', 'run', 'update_docs']
