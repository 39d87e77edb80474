"""DINO: a student learns to predict, from any view of an image, what its own moving average sees in a large view."""

from itertools import groupby
from typing import Dict, List, Optional

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from mmengine.model import BaseModule
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.structures import DataSample
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ..models.sync_bn import SyncBN
from ..registry import MODELS


@MODELS.register_module()
class DINO(BaseSelfSupervisor):
    """Student and teacher of DINO for MMPretrain.

    ``backbone`` and ``neck`` are the teacher, as in the published files, so every tool that reads ``backbone.…`` of a
    checkpoint takes the teacher. The ``student`` has the same parts and alone receives gradients. Batch norm uses batch
    statistics in both; the teacher has no stochastic depth.

    :class:`~xcit_mm.selfsup.hooks.DINOHook` updates the teacher and sets the schedules.

    Args:
        backbone (dict): Config of both backbones; the last of their outputs, (B, C), is used.
        neck (dict): Config of both heads in DINO's words, :class:`DINONeck`.
        head (dict): Config of the loss, :class:`DINOHead`.
        num_global_crops (int): Number of views, from the first, that the teacher sees; at least 2.
        data_preprocessor (dict, optional): As for MMPretrain's self-supervised models.
        init_cfg (dict, optional): Initialisation of the whole model.

    Raises:
        ValueError: If ``num_global_crops`` is below 2.
    """

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        head: dict,
        num_global_crops: int = 2,
        data_preprocessor: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ):
        if num_global_crops < 2:
            raise ValueError(f'DINO: num_global_crops must be at least 2, got {num_global_crops}')
        of_teacher = dict(backbone, drop_path_rate=0.0) if 'drop_path_rate' in backbone else backbone
        super().__init__(of_teacher, neck, head, data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.num_global_crops = num_global_crops
        self.student = nn.ModuleDict(
            dict(backbone=MODELS.build(dict(backbone, init_cfg=None)), neck=MODELS.build(neck))
        )
        self.backbone.requires_grad_(False)
        self.neck.requires_grad_(False)
        self._copy_to_student()

    def _copy_to_student(self) -> None:
        for name, part in self.student.items():
            part.load_state_dict(getattr(self, name).state_dict())

    def init_weights(self) -> None:
        """Initialise the teacher, and copy its weights to the student."""
        super().init_weights()
        self._copy_to_student()

    def _load_from_state_dict(self, state_dict, prefix, *args):
        """Load both from the backbone of a file without a student, such as a published one."""
        names = [name for name in state_dict if name.startswith((f'{prefix}backbone.', f'{prefix}neck.'))]
        if not any(name.startswith(f'{prefix}student.') for name in state_dict):
            state_dict.update({f'{prefix}student.{name[len(prefix) :]}': state_dict[name] for name in names})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def loss(self, inputs: List[Tensor], data_samples: Optional[List[DataSample]] = None) -> Dict[str, Tensor]:
        """Views of B images, (B, 3, H, W) each, the large ones first -> 'loss', and 'teacher_entropy' in nats."""
        with torch.no_grad():
            teacher = self.neck(self.backbone(torch.cat(inputs[: self.num_global_crops]))[-1])
        # One pass for each size of views, one of the head for all.
        batches = [torch.cat(list(views)) for _, views in groupby(inputs, key=lambda view: view.shape)]
        features = torch.cat([self.student['backbone'](batch)[-1] for batch in batches])
        student = self.student['neck'](features)
        return self.head.loss(
            student.unflatten(0, (len(inputs), -1)), teacher.unflatten(0, (self.num_global_crops, -1))
        )

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """teacher <- momentum * teacher + (1 - momentum) * student, for all parameters."""
        for name, part in self.student.items():
            for ours, theirs in zip(getattr(self, name).parameters(), part.parameters()):
                ours.lerp_(theirs, 1 - momentum)


@MODELS.register_module()
class DINONeck(BaseModule):
    """DINO's projection head (appendix C): an MLP to a bottleneck, l2 norm, and a weight-normalised linear layer.

    Tensors are named as in the published full runs.

    Args:
        in_channels (int): Channels C of the features.
        out_channels (int): Outputs K.
        hidden_channels, bottleneck_channels (int): Channels inside the MLP, and at its end.
        num_layers (int): Linear layers of the MLP, GELU between.
        norm_last_layer (bool): Keep the norm of the last layer's rows at 1 instead of learning it.
        batch_norm (bool): Batch norm after all linear layers of the MLP but the last. The published runs have none; it
            shortens the beginning, in which all images look alike.
        init_cfg (dict, optional): Initialisation.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 65536,
        hidden_channels: int = 2048,
        bottleneck_channels: int = 256,
        num_layers: int = 3,
        norm_last_layer: bool = True,
        batch_norm: bool = False,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        widths = [in_channels, *[hidden_channels] * (num_layers - 1), bottleneck_channels]
        layers = []
        for c_in, c_out in zip(widths, widths[1:]):
            linear = nn.Linear(c_in, c_out)
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
            layers += [linear, SyncBN(c_out), nn.GELU()] if batch_norm else [linear, nn.GELU()]
        self.mlp = nn.Sequential(*layers[: -2 if batch_norm else -1])
        self.last_layer = WeightNormedLinear(bottleneck_channels, out_channels)
        self.last_layer.weight_g.requires_grad_(not norm_last_layer)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C) -> logits (B, K)."""
        return self.last_layer(F.normalize(self.mlp(features), dim=-1))


class WeightNormedLinear(nn.Module):
    """Linear layer without bias whose weight is g v / |v| for each output (Salimans and Kingma, arXiv:1602.07868).

    PyTorch's own weight norm keeps the weight as an attribute, which deepcopy refuses.

    Args:
        in_features (int): Inputs.
        out_features (int): Outputs.
    """

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(out_features, 1))
        self.weight_v = nn.Parameter(nn.Linear(in_features, out_features, bias=False).weight.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(B, in) -> (B, out)."""
        return F.linear(x, self.weight_g * F.normalize(self.weight_v, dim=1))


@MODELS.register_module()
class DINOHead(BaseModule):
    r"""DINO's loss (section 3.1): the cross-entropy between the teacher's and the student's distribution.

    With the logits t of the teacher for the large views, those s of the student for all views, and the centre c:

    .. math::
        L = \operatorname{mean}_{i,\, j \neq i} -\, \mathrm{softmax}((t_i - c) / \tau_t) \cdot
            \log \mathrm{softmax}(s_j / \tau_s), \qquad
        c \leftarrow m\, c + (1 - m)\, \operatorname{mean}(t)

    where the last mean is over the large views of the images of all processes.

    Args:
        out_channels (int): Outputs K.
        student_temp (float): Temperature of the student.
        teacher_temp (float): Temperature of the teacher; the hook sets it.
        center_momentum (float): Momentum m of the centre.
        init_cfg (dict, optional): Initialisation.
    """

    def __init__(
        self,
        out_channels: int = 65536,
        student_temp: float = 0.1,
        teacher_temp: float = 0.04,
        center_momentum: float = 0.9,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg)
        self.student_temp, self.teacher_temp, self.center_momentum = student_temp, teacher_temp, center_momentum
        self.register_buffer('center', torch.zeros(1, out_channels))

    def loss(self, student: Tensor, teacher: Tensor) -> Dict[str, Tensor]:
        """Student (V, B, K) and teacher (G, B, K), of which the first G views are the same -> the losses."""
        views, batch = student.shape[:2]
        large = len(teacher)
        with torch.autocast(student.device.type, enabled=False):
            teacher = teacher.detach().float()
            target = ((teacher - self.center) / self.teacher_temp).softmax(dim=-1)
            log_probs = (student.float() / self.student_temp).log_softmax(dim=-1)
            # (G, V): the cross-entropies of all pairs are one matmul over images and outputs.
            pairs = -target.flatten(1) @ log_probs.flatten(1).t() / batch
            loss = (pairs.sum() - pairs.diagonal().sum()) / (large * views - large)
            entropy = -torch.xlogy(target, target).sum(dim=-1).mean()
            self._update_center(teacher)
        return dict(loss=loss, teacher_entropy=entropy)

    @torch.no_grad()
    def _update_center(self, teacher: Tensor) -> None:
        mean = teacher.mean(dim=(0, 1)).unsqueeze(0)
        all_reduce(mean, op='mean')
        self.center.lerp_(mean, 1 - self.center_momentum)
