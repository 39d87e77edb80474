"""The published models: their numbers, configs and weights, and the tools that hold this project against them.

``tools/model_zoo.py`` is the command line.
"""

from ..published import Model, Weights, all_models, all_weights, find_weights, read_table

__all__ = ['Model', 'Weights', 'all_models', 'all_weights', 'find_weights', 'read_table']
