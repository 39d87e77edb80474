"""The models that are compared: this backbone, the same one by timm and MMPretrain, and well-known others."""

from contextlib import nullcontext
from importlib import import_module
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from ..checkpoint.layouts import LAYOUTS
from ..model_zoo.complexity import count_multiply_adds, without_memory
from ..models import XCiT
from ..models.xcit import ARCHS
from .settings import DTYPES, Setting

OURS = 'xcit_mm'
PEERS = ('timm', 'mmpretrain')
# Each peer's name of its XCA blocks.
BLOCKS = {'timm': 'blocks', 'mmpretrain': 'xca_layers'}
PACKAGES = {
    'timm': 'timm.models.xcit',
    'mmpretrain': 'mmpretrain.models',
    'Swin-T': 'torchvision.models',
    'ResNet-50': 'torchvision.models',
    'ConvNeXt-T': 'torchvision.models',
    'DeiT-S': 'timm.models',
    'ViT-S/8': 'timm.models',
}
CONTEXT = tuple(name for name in PACKAGES if name not in PEERS)
NAMES = (OURS, *PACKAGES)


def installed(names: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Split names into the contenders whose package can be imported, and notes on those left out."""
    found, notes = [], []
    for name in names:
        try:
            import_module(PACKAGES.get(name, 'xcit_mm'))
            found.append(name)
        except Exception as error:  # OpenMMLab asserts the versions of its parts, and may not fit others
            package = PACKAGES[name].split('.')[0]
            notes.append(f'{name} is left out, {package} cannot be imported ({" ".join(str(error).split())})')
    return found, notes


class Contender(nn.Module):
    """A model and the function that runs it to one tensor."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Tensor], Tensor]):
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w), or (B, C) where the class token is wanted."""
        return self.run(self.model, image)


def build(name: str, setting: Setting, weights: Dict[str, Tensor]) -> Contender:
    """Build a contender in fp32 on the CPU: an XCiT with the given weights, any other with its initial weights."""
    if name in PEERS:
        with torch.device('meta'):
            contender = make(name, setting)
        contender.to_empty(device='cpu')
        layout = next(layout for layout in LAYOUTS if layout.name.lower() == name)
        renamed = layout.from_native({f'backbone.{key}': value for key, value in weights.items()})
        contender.model.load_state_dict({_without_prefix(key): value for key, value in renamed.items()})
    else:
        contender = make(name, setting)
    if name == OURS:
        # A backbone that returns maps has no class attention.
        contender.model.load_state_dict({key: weights[key] for key in contender.model.state_dict()})
    return contender


def _without_prefix(key: str) -> str:
    return key[len('backbone.') :] if key.startswith('backbone.') else key


def random_weights(arch: str, patch_size: int, seed: int = 0) -> Dict[str, Tensor]:
    """Random weights of a whole XCiT by our names: no parameter is 0 or 1, and every branch contributes."""
    generator = torch.Generator().manual_seed(seed)
    weights = XCiT(arch, patch_size, 'raw').state_dict()
    for key, tensor in weights.items():
        name = key.rpartition('.')[2]
        if tensor.is_floating_point() and tensor.dim() < 2:
            centre = 0.2 if name.startswith('gamma') else float(name in ('weight', 'running_var'))
            tensor.normal_(centre, 0.1, generator=generator)
        elif tensor.is_floating_point():
            tensor.normal_(float(name == 'temperature'), tensor[0].numel() ** -0.5, generator=generator)
    return weights


def multiply_adds(name: str, setting: Setting) -> int:
    """MACs of an XCiT for the whole batch, by the convention of the model zoo."""
    with without_memory():
        contender = make(name, setting)
    return setting.batch * count_multiply_adds(contender, setting.height, setting.width)


class Step:
    """A contender, prepared for the work of one setting.

    Args:
        contender (Contender): On the CPU, in fp32; it is moved, cast and compiled here.
        setting (Setting): The work.
    """

    def __init__(self, contender: Contender, setting: Setting):
        self.setting = setting
        self.contender = contender.to(setting.device)
        self.contender.train(setting.training)
        if not setting.autocast:
            self.contender.to(DTYPES[setting.dtype])
        self._upstream: Optional[Tensor] = None
        self._run = torch.compile(self.contender, mode=setting.compile_mode) if setting.compiled else self.contender

    def __call__(self, image: Tensor) -> Tensor:
        """Inference or a training step on an image (B, 3, H, W); the output, detached."""
        setting = self.setting
        self.forget()
        half = setting.autocast and setting.dtype != 'fp32'
        context = torch.autocast(setting.device, DTYPES[setting.dtype]) if half else nullcontext()
        with torch.set_grad_enabled(setting.training), context:
            out = self._run(image)
        if setting.training:
            if self._upstream is None or self._upstream.shape != out.shape:
                self._upstream = upstream(out)  # drawn on the CPU, which would take longer than the step
            out.backward(self._upstream)
        return out.detach()

    def forget(self) -> None:
        """Drop the gradients of the last step."""
        for parameter in self.contender.parameters():
            parameter.grad = None


def make_image(setting: Setting) -> Tensor:
    """A seeded image (B, 3, H, W) in fp32, the same for every contender."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(setting.batch, 3, setting.height, setting.width, generator=generator).to(setting.device)


def upstream(out: Tensor) -> Tensor:
    """Seeded random gradient of an output. The gradient of its sum would nearly vanish at the first norm."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(out.shape, generator=generator).to(out)


def as_input(image: Tensor, setting: Setting) -> Tensor:
    return image if setting.autocast else image.to(DTYPES[setting.dtype])


def make(name: str, setting: Setting, drop_path_rate: float = 0.0) -> Contender:
    """Build a contender on the default device, with initial weights."""
    if name == OURS:
        out_type = 'featmap' if setting.features == 'map' else 'cls_token'
        return Contender(XCiT(setting.arch, setting.patch_size, out_type), lambda model, image: model(image)[0])
    if name in PEERS:
        return _make_peer(name, setting, drop_path_rate)
    models = import_module(PACKAGES[name])
    if name in ('DeiT-S', 'ViT-S/8'):
        of_timm = {'DeiT-S': 'deit_small_patch16_224', 'ViT-S/8': 'vit_small_patch8_224'}[name]
        model = models.create_model(of_timm, num_classes=0, dynamic_img_size=True)
        return Contender(model, lambda model, image: model.forward_features(image))
    if name == 'ResNet-50':
        return Contender(nn.Sequential(*list(models.resnet50().children())[:-2]), nn.Sequential.__call__)
    model = (models.swin_t if name == 'Swin-T' else models.convnext_tiny)().features
    for module in model.modules():
        if type(module).__name__ == 'StochasticDepth':
            module.p = 0.0  # as in the others
    return Contender(model, nn.Sequential.__call__)


def _make_peer(name: str, setting: Setting, drop_path_rate: float) -> Contender:
    arch = ARCHS[setting.arch]
    options: Dict[str, Any] = {key: arch[key] for key in ('depth', 'num_heads')}
    options.update(patch_size=setting.patch_size, tokens_norm=arch.get('tokens_norm', True))
    options.update(drop_path_rate=drop_path_rate)
    if name == 'timm':
        model = import_module(PACKAGES[name]).Xcit(num_classes=0, embed_dim=arch['embed_dims'], **options)
    else:
        model = import_module(PACKAGES[name]).backbones.XCiT(embed_dims=arch['embed_dims'], **options)
        # Half precision fails without this: the position features enter this layer in fp32.
        model.pos_embed.token_projection.register_forward_pre_hook(
            lambda module, args: (args[0].to(module.conv.weight.dtype),)
        )
    if setting.features == 'map':
        last = (arch['depth'] - 1,)
        return Contender(model, lambda model, image: maps_of(model, image, BLOCKS[name], last)[0])
    return Contender(model, (lambda m, image: m(image)) if name == 'timm' else (lambda m, image: m(image)[0]))


def maps_of(model: nn.Module, image: Tensor, blocks: str, indices: Sequence[int]) -> Tuple[Tensor, ...]:
    """The maps after some blocks of a peer's XCiT, without class attention, which MMPretrain runs even for a map.

    Args:
        model (nn.Module): A model of timm or MMPretrain.
        image (Tensor): (B, 3, H, W).
        blocks (str): The model's name of its blocks, see :data:`BLOCKS`.
        indices (Sequence[int]): Indices of blocks, ascending.

    Returns:
        tuple[Tensor]: (B, C, h, w) for each index.
    """
    x, grid = model.patch_embed(image)
    position = model.pos_embed(len(x), *grid)
    x = model.pos_drop(x + position.reshape(len(x), -1, x.shape[1]).permute(0, 2, 1))
    maps = []
    for i, block in enumerate(getattr(model, blocks)):
        x = block(x, *grid)
        for _ in range(list(indices).count(i)):
            maps.append(x.reshape(len(x), *grid, -1).permute(0, 3, 1, 2).contiguous())
    return tuple(maps)
