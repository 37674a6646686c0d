"""The operations that the relay's networks are made of, each one file: definition, docstring, forms.

Each is defined by a composition of differentiable PyTorch functions, its `reference`. Where a compiled library serves
the device (CUDA kernels on a GPU, vectorised loops on a CPU; `make ops`), the same is one operator `relay::...` with its
own first and second derivative. Which of them runs: `relay_core.native`; nothing else depends on it.
"""

from relay_core.cuda.bias_act import ACTIVATIONS, bias_act
from relay_core.cuda.epilogue import epilogue
from relay_core.cuda.loader import which
from relay_core.cuda.modulated_conv2d import conv2d_resample, modulated_conv2d, styled_conv2d
from relay_core.cuda.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "ACTIVATIONS",
    "bias_act",
    "conv2d_resample",
    "downsample2d",
    "epilogue",
    "filter2d",
    "modulated_conv2d",
    "setup_filter",
    "styled_conv2d",
    "upfirdn2d",
    "upsample2d",
    "which",
]
