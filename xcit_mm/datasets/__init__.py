"""Data sets that xcit_mm makes itself."""
