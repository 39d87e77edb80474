"""Fused kernels for NVIDIA GPUs from Ampere on, in Triton; optional."""
