from .real import ReaLAccuracy

__all__ = ['ReaLAccuracy']
