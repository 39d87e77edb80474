"""What is measured: a setting is work that every contender does, a row the result of one of them."""

import re
from dataclasses import dataclass
from typing import Optional, Tuple

import torch

DTYPES = {'fp32': torch.float32, 'bf16': torch.bfloat16, 'fp16': torch.float16}


def parse_size(text: str) -> Tuple[int, int]:
    """'224' -> (224, 224), '800x1216' -> (800, 1216): height and width in pixels.

    Raises:
        ValueError: If the text is not a size, or a side is below 32 pixels.
    """
    found = re.fullmatch(r'(\d+)(?:x(\d+))?', text)
    size = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
    if min(size) < 32:
        raise ValueError(
            f'a size is HEIGHTxWIDTH or one number, at least 32 pixels, for example 800x1216; got {text!r}'
        )
    return size


@dataclass(frozen=True)
class Setting:
    """One piece of work.

    Attributes:
        arch (str), patch_size (int): The XCiT's.
        height, width, batch (int): Size of the input.
        dtype (str): 'fp32', 'bf16' or 'fp16', of weights and input; with ``autocast``, of the operators.
        mode (str): 'inference', or 'training': forward and backward pass in train mode, from a random
            gradient of the output.
        compiled (bool): Whether torch.compile is used.
        compile_mode (str): Its mode: 'default', 'reduce-overhead' (CUDA graphs) or 'max-autotune'.
        features (str): 'map': the last block's map, without class attention; 'cls': the class token.
        device (str): 'cpu' or 'cuda'.
    """

    arch: str
    patch_size: int
    height: int
    width: int
    batch: int = 1
    dtype: str = 'fp32'
    mode: str = 'inference'
    compiled: bool = False
    features: str = 'map'
    device: str = 'cpu'
    autocast: bool = False
    compile_mode: str = 'default'

    @property
    def training(self) -> bool:
        return self.mode == 'training'

    @property
    def tokens(self) -> int:
        """Tokens of one image."""
        return -(-self.height // self.patch_size) * -(-self.width // self.patch_size)

    @property
    def execution(self) -> str:
        """'eager', 'compiled', or 'compiled' with the mode of torch.compile."""
        if not self.compiled:
            return 'eager'
        return 'compiled' if self.compile_mode == 'default' else f'compiled ({self.compile_mode})'

    @property
    def family(self) -> str:
        """The setting without the size of the image."""
        words = [f'XCiT-{self.arch.upper()}/{self.patch_size}', f'batch {self.batch}', self.dtype]
        words += ['autocast'] * self.autocast + [self.mode, self.execution, self.device]
        return ', '.join(words)

    def __str__(self) -> str:
        output = 'map' if self.features == 'map' else 'class token'
        return f'{self.family}, {self.height}x{self.width} ({self.tokens} tokens), {output}'


@dataclass
class Row:
    """Results of one contender at one setting; None: not measured.

    Attributes:
        seconds, fastest (float): Median and minimum of the rounds, for the whole batch.
        ratio (float): Time over that of this project's backbone in the same round, median of the rounds.
        deviation, rms (float): Deviation of the output from this project's reference in fp32: the largest difference
            over the largest value, and the same with root mean squares.
        gradient (float): In training, the deviation of the gradient of the image.
        multiply_adds (int): MACs of the contender's layers; None for other models than XCiT, and in training.
        of_peak (float): MACs per second over those of a large matmul in the same round, median of the rounds.
        compile_seconds (float): Duration of the first call of a compiled model.
        peak_memory (int): Bytes, see :mod:`xcit_mm.benchmark.memory`.
        note (str): Why it was left out, or what is wrong with it.
    """

    name: str
    setting: Setting
    seconds: Optional[float] = None
    fastest: Optional[float] = None
    ratio: Optional[float] = None
    deviation: Optional[float] = None
    rms: Optional[float] = None
    gradient: Optional[float] = None
    multiply_adds: Optional[int] = None
    of_peak: Optional[float] = None
    compile_seconds: Optional[float] = None
    peak_memory: Optional[int] = None
    note: str = ''

    @property
    def per_image(self) -> Optional[float]:
        return None if self.seconds is None else self.seconds / self.setting.batch
