"""The operations that the relay's networks are made of, each one file: definition, docstring, form.

All are compositions of differentiable PyTorch functions, so first and second derivatives come from autograd, on the CPU
and on a GPU alike.
"""

from relay_core.cuda.bias_act import ACTIVATIONS, bias_act
from relay_core.cuda.modulated_conv2d import conv2d_resample, modulated_conv2d
from relay_core.cuda.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "ACTIVATIONS",
    "bias_act",
    "conv2d_resample",
    "downsample2d",
    "filter2d",
    "modulated_conv2d",
    "setup_filter",
    "upfirdn2d",
    "upsample2d",
]
