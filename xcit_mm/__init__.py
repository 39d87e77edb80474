"""XCiT (cross-covariance image transformers) for MMPretrain, MMDetection and MMSegmentation.

Nothing has to be imported to use it: a config that names ``type='xcit_mm.XCiT'`` makes MMEngine import
:mod:`xcit_mm.registry`, which knows where everything else lives.
"""

__version__ = '1.0.0'
