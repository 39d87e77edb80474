"""``model-index.yml`` and ``configs/metafile.yml``, in the format that OpenMMLab's tools read."""

from typing import Dict, List, Sequence

import yaml

from ..errors import UsageError
from ..published import TOP1, TOP1_MMPRETRAIN, TOP5_MMPRETRAIN
from .tables import Row

MODEL_INDEX = 'model-index.yml'
METAFILE = 'configs/metafile.yml'
HEAD = '# Written by tools/model_zoo.py --metafiles.\n'

COLLECTION = {
    'Name': 'XCiT',
    'Metadata': {
        'Architecture': ['Cross-Covariance Attention', 'Local Patch Interaction', 'Class Attention'],
        'Training Techniques': ['AdamW', 'Weight Decay', 'Stochastic Depth', 'LayerScale'],
    },
    'Paper': {'Title': 'XCiT: Cross-Covariance Image Transformers', 'URL': 'https://arxiv.org/abs/2106.09681'},
    # Relative to the metafile, unlike the configs, which OpenMMLab's tools look for from the repository's root.
    'README': '../README.md',
    'Code': {'URL': 'https://github.com/facebookresearch/xcit'},
}
SCHEDULES = {
    'Mask R-CNN': {'Training Data': 'COCO', 'Epochs': 36, 'Batch Size': 16},
    'Semantic FPN': {'Training Data': 'ADE20K', 'Iterations': 80000, 'Batch Size': 16},
    'UperNet': {'Training Data': 'ADE20K', 'Iterations': 160000, 'Batch Size': 16},
}


def metafiles(rows: Sequence[Row]) -> Dict[str, str]:
    """Contents of the files by their paths in the repository.

    Raises:
        UsageError: If the parameters of a row could not be computed.
    """
    if any(row.parameters is None for row in rows):
        raise UsageError('the metafiles need mmpretrain, mmdet and mmseg installed; one of them is not')
    index = {'Collections': [COLLECTION], 'Models': [_entry(row) for row in rows]}
    return {MODEL_INDEX: HEAD + _dump({'Import': [METAFILE]}), METAFILE: HEAD + _dump(index)}


def _dump(content: dict) -> str:
    return yaml.safe_dump(content, sort_keys=False, width=1000)


def _entry(row: Row) -> dict:
    model = row.model
    metadata = {'Parameters': row.parameters.total, **SCHEDULES.get(model.method, {'Training Data': 'ImageNet-1k'})}
    if model.flops is not None:
        metadata = {'FLOPs': model.flops, **metadata}
    entry = {
        'Name': model.name,
        'In Collection': 'XCiT',
        'Metadata': metadata,
        'Results': _results(model.task, model.metrics),
        'Weights': model.weights,
        'Config': model.config,
    }
    if model.weights_mmpretrain:
        entry['Weights (MMPretrain)'] = model.weights_mmpretrain
    return entry


def _results(task: str, metrics: Dict[str, float]) -> List[dict]:
    if task == 'classification':
        accuracies = {
            'Top 1 Accuracy': metrics[TOP1],
            'Top 1 Accuracy (MMPretrain protocol)': metrics[TOP1_MMPRETRAIN],
            'Top 5 Accuracy (MMPretrain protocol)': metrics[TOP5_MMPRETRAIN],
        }
        return [_result('Image Classification', 'ImageNet-1k', accuracies)]
    if task == 'detection':
        return [
            _result('Object Detection', 'COCO', {'box AP': metrics['box AP']}),
            _result('Instance Segmentation', 'COCO', {'mask AP': metrics['mask AP']}),
        ]
    return [_result('Semantic Segmentation', 'ADE20K', {'mIoU': metrics['mIoU']})]


def _result(task: str, dataset: str, metrics: Dict[str, float]) -> dict:
    return {'Task': task, 'Dataset': dataset, 'Metrics': metrics}
