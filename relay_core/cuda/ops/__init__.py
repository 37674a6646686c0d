"""The operations that the relay's networks are made of, each in a file of its own.

Each is defined by a composition of differentiable PyTorch functions, its `reference`. Where a compiled library serves
the device, one operator `relay::...` computes the same, with its own first and second derivative. The loader uses a library
only where the operations give with it what their definitions give; `selfcheck` compares them.
"""

from relay_core.cuda import loader
from relay_core.cuda.ops import selfcheck
from relay_core.cuda.ops.bias_act import ACTIVATIONS, bias_act
from relay_core.cuda.ops.bias_act import reference as bias_act_reference
from relay_core.cuda.ops.epilogue import epilogue
from relay_core.cuda.ops.epilogue import reference as epilogue_reference
from relay_core.cuda.ops.modulated_conv2d import conv2d_resample, modulated_conv2d, styled_conv2d
from relay_core.cuda.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
from relay_core.cuda.ops.upfirdn2d import reference as upfirdn2d_reference

backend = loader.backend
loader.try_out_with(selfcheck.outcomes, selfcheck.disagreement)

__all__ = [
    "ACTIVATIONS",
    "backend",
    "bias_act",
    "bias_act_reference",
    "conv2d_resample",
    "downsample2d",
    "epilogue",
    "epilogue_reference",
    "filter2d",
    "modulated_conv2d",
    "setup_filter",
    "styled_conv2d",
    "upfirdn2d",
    "upfirdn2d_reference",
    "upsample2d",
]
