"""The weighted k-nearest-neighbour test of features (Wu et al., arXiv:1805.01978; DINO, section 4.1).

Training features stay in the process that computed them: each process searches its own for neighbours, and the best of
all processes are merged.
"""

from typing import Callable, Dict, Iterable, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, get_world_size, is_main_process
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor


def progress_bar(items: Iterable, total: int, title: str) -> Iterable:
    """Iterate over items, with a progress bar in the first process."""
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, disable=not is_main_process()) as progress:
        yield from progress.track(items, total=total)


@torch.no_grad()
def extract_features(
    loader, preprocess: Callable[[dict], dict], features_of: Callable[[Tensor], Tensor], title: str
) -> Tuple[Tensor, Tensor]:
    """Compute this process's share of a data set's features.

    Args:
        loader: Data loader of MMPretrain, in order, of this process's share of the images.
        preprocess: A model's data preprocessor.
        features_of: From images (B, 3, H, W), normalised, to features (B, C).
        title (str): What the progress bar says.

    Returns:
        tuple[Tensor, Tensor]: l2-normalised features (N, C), fp32, and labels (N,).
    """
    features, labels = [], []
    for batch in progress_bar(loader, len(loader), title):
        batch = preprocess(batch)
        features.append(F.normalize(features_of(batch['inputs']).flatten(1).float(), dim=1))
        labels.append(torch.cat([sample.gt_label for sample in batch['data_samples']]))
    return torch.cat(features), torch.cat(labels)


def gather_in_order(share: Tensor, total: int) -> Tensor:
    """Gather rows that were distributed round-robin and padded to equal counts, in the order of the data set."""
    return torch.stack(all_gather(share), dim=1).flatten(0, 1)[:total]


@torch.no_grad()
def knn_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    ks: Sequence[int] = (10, 20, 100, 200),
    temperature: float = 0.07,
    chunk_size: int = 500,
    num_classes: Optional[int] = None,
) -> Dict[int, Tuple[float, ...]]:
    r"""Accuracy of the vote of the k nearest training images, each weighted by exp(similarity / temperature).

    Args:
        train_features (Tensor): l2-normalised, (N, C); of this process's share.
        train_labels (Tensor): (N,); a negative one does not count.
        test_features (Tensor): l2-normalised, (M, C); of all test images, in every process.
        test_labels (Tensor): (M,).
        ks (Sequence[int]): Numbers of neighbours.
        temperature (float): Temperature of the weights.
        chunk_size (int): Test images at a time.
        num_classes (int, optional): By default one more than the largest label.

    Returns:
        dict[int, tuple[float, ...]]: For each k the top-1 accuracy in per cent and, with more than five classes, the
        top-5 accuracy. Only classes that a neighbour voted for are counted; ties are broken by the label. A k above
        the number of training images counts all of them.
    """
    most = max(ks)
    num_classes = num_classes or int(max(all_gather(train_labels.max())).item()) + 1
    kept = train_labels >= 0
    train, train_labels = train_features[kept].t(), train_labels[kept]
    tops = (1, 5) if num_classes > 5 else (1,)
    hits = {k: torch.zeros(len(tops), dtype=torch.long, device=test_features.device) for k in ks}
    chunks = list(zip(test_features.split(chunk_size), test_labels.split(chunk_size)))
    for queries, labels in progress_bar(chunks, len(chunks), 'neighbours'):
        similarity, index = (queries @ train).topk(min(most, train.shape[1]), dim=1)
        neighbours = train_labels[index]
        if get_world_size() > 1:
            missing = most - similarity.shape[1]
            similarity = F.pad(similarity, (0, missing), value=float('-inf'))
            neighbours = F.pad(neighbours, (0, missing))
            similarity, neighbours = (torch.cat(all_gather(t), dim=1) for t in (similarity, neighbours))
            similarity, best = similarity.topk(most, dim=1)
            neighbours = neighbours.gather(1, best)
        # Subtracting the maximum scales all votes alike, and prevents overflow at low temperatures.
        weights = ((similarity - similarity[:, :1]) / temperature).exp()
        is_vote = similarity > float('-inf')
        for k in ks:
            votes = weights.new_zeros(len(queries), num_classes)
            votes.scatter_add_(1, neighbours[:, :k], weights[:, :k])
            voters = votes.new_zeros(votes.shape).scatter_add_(1, neighbours[:, :k], is_vote[:, :k].to(votes.dtype))
            order = votes.argsort(dim=1, descending=True, stable=True)
            found = (order == labels[:, None]) & (voters.gather(1, order) > 0)
            hits[k] += torch.stack([found[:, :top].any(dim=1).sum() for top in tops])
    return {k: tuple((100.0 * hit / len(test_features)).tolist()) for k, hit in hits.items()}
