"""MMDetection's inferencer with this package's model names."""

import mmdet.apis

from .names import PublishedModels


class DetInferencer(PublishedModels, mmdet.apis.DetInferencer):
    """:class:`mmdet.apis.DetInferencer` that also takes the names of :func:`xcit_mm.list_models`.

    ``DetInferencer('mask_rcnn_xcit_s12_8_3x_coco')`` downloads the published weights.

    Raises:
        CheckpointError: If ``weights`` belong to another model; MMDetection would load the part that fits.
    """
