"""mmcv's operators by torchvision and PyTorch: mmdet, mmseg, mmpose and mmrotate without a compiler.

mmcv's operators are C++ and CUDA that has to be compiled against the PyTorch at hand. The ones that detectors and
segmentors use are also in torchvision's ordinary wheel, for CPU and CUDA, or are a few lines of PyTorch.

``python -m xcit_mm.mmcv_ops install`` writes one small file, ``_ext.py``, into mmcv's folder. From then on every tool
has them, with nothing imported first; Python prefers a compiled ``_ext.*.so`` beside it. ``uninstall`` removes the
file, and ``status`` says which operators come from where.

Each module has a family of operators under the names, argument orders and conventions of mmcv's C++ functions: outputs
come allocated and are filled in place, and gradients are functions of their own that mmcv's autograd functions call.

- :mod:`nms`: (soft) non-maximum suppression, overlaps of boxes.
- :mod:`roi`: RoIAlign, RoIPool, deformable RoI pooling.
- :mod:`deform`: deformable convolution, version 1 and 2.
- :mod:`focal`: sigmoid and softmax focal loss.
- :mod:`attention`: multi-scale deformable attention, the masks of PSANet.
- :mod:`resampling`: masked convolution, CARAFE.
- :mod:`rotated`: overlaps and suppression of rotated boxes and quadrilaterals.
- :mod:`rotated_features`: RoIAlign and RiRoIAlign for rotated boxes, feature alignment, rotated filters.
- :mod:`polygons`: overlaps of point sets and polygons, smallest rectangles, distances.
- :mod:`ext`: all of them; any other name is an operator that raises an error when it is called.
- :mod:`installation`: what the command does.
"""
