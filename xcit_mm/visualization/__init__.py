"""Looking into a model: what the class token attends to, and how XCA mixes channels."""

from .attention import channel_attention, class_attention, keep_mass, load_backbone, load_input

__all__ = ['channel_attention', 'class_attention', 'keep_mass', 'load_backbone', 'load_input']
