"""Self-supervised training with DINO (Caron et al., ICCV 2021, arXiv:2104.14294), as the paper's section 4.2 uses it.

:mod:`dino` is the model for MMPretrain, :mod:`hooks` what changes from iteration to iteration, and :mod:`knn` and
:mod:`linear` the two published ways of testing the features.
"""
