"""Training a classifier with a teacher (paper, section 4.2, after DeiT)."""

from typing import List, Optional

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from mmengine.runner import CheckpointLoader
from mmpretrain.models import ImageClassifier
from mmpretrain.structures import DataSample
from torch import Tensor

from ..checkpoint import CheckpointError
from ..registry import MODELS


class _Shared:
    """Holds a module out of sight of its owner, so that state dicts, optimizers and wrappers do not find it.

    Copies of the owner, such as its moving average, share the module.
    """

    def __init__(self, module):
        self.module = module

    def __deepcopy__(self, memo):
        return self


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    r"""MMPretrain's image classifier that also learns from a teacher's predictions.

    Student and teacher see the same augmented (and mixed) images, each with its own normalisation. Both losses act on
    the same logits z of the student (DeiT's distillation token is not used); with the teacher's logits t:

    .. math::
        \text{hard:}\quad & (1 - \alpha) L(z, y) + \alpha\, \mathrm{CE}(z, \arg\max t) \\
        \text{soft:}\quad & (1 - \alpha) L(z, y)
            + \alpha\, \frac{\tau^2}{K}\, \mathrm{KL}(\mathrm{softmax}(t / \tau) \,\|\, \mathrm{softmax}(z / \tau))

    over K classes: as in the release, whose KL sum is divided by the number of logits and not by that of the images.
    The teacher is frozen, always in eval mode, built only for training, and in no checkpoint.

    Args:
        *args: As for :class:`mmpretrain.models.ImageClassifier`.
        teacher (dict): Config of a classifier of MMPretrain, for example ``TimmClassifier``.
        teacher_checkpoint (str, optional): File or address with the teacher's weights, all of them, in place of those
            that its own config loads.
        distillation (str): 'hard' or 'soft'.
        alpha (float): Share of the teacher's loss, 0 to 1.
        tau (float): Temperature of soft distillation.
        **kwargs: As for :class:`mmpretrain.models.ImageClassifier`.

    Raises:
        ValueError: If ``distillation``, ``alpha`` or ``tau`` is out of its range.
        CheckpointError: When training begins, if the teacher cannot be loaded or has another number of classes.
    """

    def __init__(
        self,
        *args,
        teacher: dict,
        teacher_checkpoint: Optional[str] = None,
        distillation: str = 'hard',
        alpha: float = 0.5,
        tau: float = 1.0,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        if distillation not in ('hard', 'soft'):
            raise ValueError(f"DistilledClassifier: distillation must be 'hard' or 'soft', got {distillation!r}")
        if not 0 <= alpha <= 1 or tau <= 0:
            raise ValueError(
                f'DistilledClassifier: alpha must be from 0 to 1 and tau above 0, got alpha={alpha} and tau={tau}'
            )
        self.teacher_cfg = dict(teacher)
        self.teacher_checkpoint = teacher_checkpoint
        self.distillation, self.alpha, self.tau = distillation, alpha, tau
        self._teacher = _Shared(None)

    def init_weights(self):
        """Set the start values, and get the teacher: the runner calls this when it trains, not when it tests."""
        super().init_weights()
        self.teacher()

    def teacher(self) -> BaseModel:
        """The frozen teacher, built at the first call, on the device of the student."""
        if self._teacher.module is None:
            teacher = self._build_teacher()
            self._teacher.module = teacher.requires_grad_(False).eval().to(next(self.parameters()).device)
        return self._teacher.module

    def _build_teacher(self) -> BaseModel:
        cfg = dict(self.teacher_cfg)
        if self.teacher_checkpoint and 'pretrained' in cfg:
            cfg['pretrained'] = False
        try:
            teacher = MODELS.build(cfg)
            if not hasattr(teacher, 'model'):  # timm's models have their weights, and some would draw new ones here
                teacher.init_weights()
            if self.teacher_checkpoint:
                state = CheckpointLoader.load_checkpoint(self.teacher_checkpoint, map_location='cpu')
                state = next((state[key] for key in ('state_dict', 'model') if key in state), state)
                teacher.load_state_dict(state, strict=True)
        except Exception as error:  # the network, a hub's client and a model's code can each fail in their own way
            name = cfg.get('model_name', cfg.get('type'))
            raise CheckpointError(
                f'the teacher {name} could not be loaded ({type(error).__name__}: {str(error)[:400]}). Without '
                f'network, fetch its weights elsewhere and name the file: --cfg-options model.teacher_checkpoint=FILE; '
                f'without a teacher, train the config whose name has no _dist'
            ) from None
        return teacher

    def _apply(self, *args, **kwargs):
        """Move the teacher along with the student."""
        if self._teacher.module is not None:
            self._teacher.module._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)

    def loss(self, inputs: Tensor, data_samples: List[DataSample]) -> dict:
        """Images (B, 3, H, W) in the student's normalisation -> the two weighted losses."""
        logits = self.head(self.extract_feat(inputs))
        losses = self.head._get_loss(logits, data_samples)
        losses['loss'] = (1 - self.alpha) * losses['loss']
        losses['loss_distill'] = self.alpha * self._distillation_loss(logits, self.teacher_logits(inputs))
        return losses

    @torch.no_grad()
    def teacher_logits(self, inputs: Tensor) -> Tensor:
        """Images (B, 3, H, W) in the student's normalisation -> the teacher's logits (B, classes)."""
        teacher = self.teacher()
        student_mean, student_std = self.data_preprocessor.mean, self.data_preprocessor.std
        mean, std = self._teacher_statistics(teacher)
        mean, std = (torch.as_tensor(v, device=inputs.device).view(3, 1, 1) for v in (mean, std))
        # Mixing images is linear, so what was mixed in one normalisation can be turned into the other.
        if not (torch.allclose(mean, student_mean) and torch.allclose(std, student_std)):
            inputs = (inputs * student_std + student_mean - mean) / std
        return teacher(inputs)

    @staticmethod
    def _teacher_statistics(teacher: BaseModel):
        """Mean and deviation of the images, 0 to 255, that the teacher was trained on."""
        published = getattr(getattr(teacher, 'model', None), 'default_cfg', None)  # timm's
        if published:
            return [255 * v for v in published['mean']], [255 * v for v in published['std']]
        return teacher.data_preprocessor.mean, teacher.data_preprocessor.std

    def _distillation_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        if student.shape != teacher.shape:
            raise CheckpointError(
                f'the teacher predicts {teacher.shape[-1]} classes and the student {student.shape[-1]}; '
                f'distillation needs a teacher trained on the same classes'
            )
        if self.distillation == 'hard':
            return F.cross_entropy(student, teacher.argmax(dim=1))
        log_student = F.log_softmax(student / self.tau, dim=1)
        log_teacher = F.log_softmax(teacher / self.tau, dim=1)
        return self.tau**2 * F.kl_div(log_student, log_teacher, reduction='mean', log_target=True)
