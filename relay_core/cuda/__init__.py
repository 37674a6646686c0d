"""The networks' operations, and the compiled libraries that serve them: CUDA kernels on a GPU, vectorised loops on a CPU.

`native` knows the libraries as files and loads no torch; everything else here needs torch, and loads on first use.
"""

from typing import TYPE_CHECKING

import lazy_loader

if TYPE_CHECKING:
    from relay_core.cuda import build, loader, native
    from relay_core.cuda.loader import backend
    from relay_core.cuda.ops.bias_act import ACTIVATIONS, bias_act
    from relay_core.cuda.ops.epilogue import epilogue
    from relay_core.cuda.ops.modulated_conv2d import conv2d_resample, modulated_conv2d, styled_conv2d
    from relay_core.cuda.ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d
else:
    __getattr__, __dir__, __all__ = lazy_loader.attach(
        __name__,
        ["build", "loader", "native"],
        {
            "ops": [
                "ACTIVATIONS", "backend", "bias_act", "conv2d_resample", "downsample2d", "epilogue", "filter2d",
                "modulated_conv2d", "setup_filter", "styled_conv2d", "upfirdn2d", "upsample2d",
            ],
        },
    )  # fmt: skip
