"""MMSegmentation's inferencer with this package's model names."""

import mmseg.apis

from .names import PublishedModels


class MMSegInferencer(PublishedModels, mmseg.apis.MMSegInferencer):
    """:class:`mmseg.apis.MMSegInferencer` that also takes the names of :func:`xcit_mm.list_models`.

    ``MMSegInferencer('upernet_xcit_s12_8_160k_ade20k')`` downloads the published weights.

    Raises:
        CheckpointError: If ``weights`` belong to another model; MMSegmentation would load the part that fits.
    """
