"""The published models: their numbers, configs and weights, and the tools that hold this project against them.

``tools/model_zoo.py`` is the command line.
"""

from .published import Model, all_models, read_table

__all__ = ['Model', 'all_models', 'read_table']
