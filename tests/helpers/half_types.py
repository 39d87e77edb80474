"""The half types that autocast has here, and how far gradients in them may be from those of fp32."""

import pytest
import torch

HAS_FP16 = torch.__version__ >= torch.torch_version.TorchVersion('2.4')  # autocast on the CPU
TYPES = [
    pytest.param(torch.bfloat16, id='bf16'),
    pytest.param(
        torch.float16, id='fp16', marks=pytest.mark.skipif(not HAS_FP16, reason='PyTorch 2.4 is the first with it')
    ),
]
# Relative deviation of all gradients together from those of fp32, as one vector; and of the loss.
BOUND = {torch.bfloat16: 0.05, torch.float16: 0.01}
