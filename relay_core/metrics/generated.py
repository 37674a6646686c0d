"""Scores of generated images: how far their features are from those of real images, and how they cover each other.

They are known as FID and KID where an Inception network gives the features. A site has no network to fetch one from, so
features come from a local ONNX file, or from the site's own solver, and the scores' names say which: numbers from different
features cannot be compared. Both distances shrink or grow with the number of images: compare only scores of the same number.

Shape: images (N, C, R, R) in [-1, 1], features (N, D).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from relay_core.errors import DataError, ExportError
from relay_core.metrics.replay import coverage_scores

BATCH = 32
SUBSETS, SUBSET_SIZE = 100, 1000
"""Kernel distance: number of random subsets that are averaged, and most images in each (as in the KID paper)."""


class Features(Protocol):
    """A function from images to features that also says how scores made of them are named."""

    source: str
    """Where the features come from, for people to read."""
    suffix: str
    """Ending of the scores' names; empty only where a file that the user chose gives the features."""

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D), on any device, of a batch (B, C, R, R) in [-1, 1]."""


class SolverFeatures:
    """Features of a site's own solver: the deepest level of its encoder, averaged over the image.

    They hold what matters for the solver's task, but are no Inception features, so the scores are named apart.

    Args:
        solver: a network with a method `features(images (B, C, R, R)) -> (B, D)`. It is run in eval mode, on its own device.
        out_range: the values of black and white that the solver was trained with.
    """

    source = "solver encoder (not Inception)"
    suffix = "_solver_encoder"

    def __init__(self, solver: nn.Module, out_range: tuple[float, float] = (-1.0, 1.0)) -> None:
        self.solver, self.low, self.span = solver, out_range[0], out_range[1] - out_range[0]

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) of a batch (B, C, R, R) in [-1, 1]."""
        training, parameter = self.solver.training, next(self.solver.parameters(), None)
        if (self.low, self.span) != (-1, 2):
            images = (images + 1) * (self.span / 2) + self.low
        self.solver.eval()
        try:
            features: Tensor = self.solver.features(images if parameter is None else images.to(parameter.device))  # type: ignore[operator]
        finally:
            self.solver.train(training)
        return features


class OnnxFeatures:
    """Features of a local ONNX file, for instance of an Inception network; it runs on the CPU, and may use no other file.

    Its input is float32 (batch, 3 or 1, H, W) with a free batch. Images come in values 0..1; what else the network expects
    (ImageNet's mean and deviation, say) belongs into the file. They are resized, bilinear with antialiasing, to its H and W
    unless those are free, and grey is repeated to 3 channels. Its first output, (batch, D) or (batch, D, h, w), is averaged
    over h and w.

    Args:
        path: the file. An ONNX file is code as much as data: use only one that the user trusts.

    Raises:
        ExportError: the file is missing, is no ONNX file, or has another input or output; or onnxruntime is not installed.
    """

    suffix = ""

    def __init__(self, path: str | Path) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise ExportError("features from an ONNX file need onnxruntime: pip install 'relay-learning[cpu]'") from None
        self.path = Path(path)
        self.source = self.path.name
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        try:
            content = self.path.read_bytes()  # from memory, so that it cannot draw in other files
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except OSError as error:
            raise ExportError(f"{self.path}: cannot be read: {error.strerror}") from None
        except Exception:  # ONNX Runtime's errors have no common base, and quote the model
            raise ExportError(f"{self.path}: ONNX Runtime cannot load it: damaged, or no ONNX file") from None
        inputs, output = self._session.get_inputs(), self._session.get_outputs()[0]
        shape = inputs[0].shape if inputs else []
        fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and len(shape) == 4
        if not fits or isinstance(shape[0], int) or shape[1] not in (1, 3):
            actual = ", ".join(f"{tensor.type} {tensor.shape}" for tensor in inputs) or "nothing"
            raise ExportError(
                f"{self.path}: its input must be float32 (batch, 3 or 1, H, W) with a free batch, not {actual}"
            )
        if len(output.shape or ()) not in (2, 4):
            raise ExportError(f"{self.path}: its first output must be (batch, D) or (batch, D, h, w), not {output.shape}")
        self._input, self._output, self._channels = inputs[0].name, output.name, shape[1]
        self._size = [side if isinstance(side, int) else None for side in shape[2:]]

    def __call__(self, images: Tensor) -> Tensor:
        """Return features (B, D) of a batch (B, C, R, R) in [-1, 1].

        Raises ExportError for colour images where the file takes grey ones.
        """
        x = (images.detach().float().cpu() + 1) / 2
        if x.shape[1] not in (1, self._channels):
            raise ExportError(f"{self.path}: takes {self._channels} channels, the images have {x.shape[1]}")
        size = [fixed or side for fixed, side in zip(self._size, x.shape[2:], strict=True)]
        x = F.interpolate(x, size, mode="bilinear", antialias=True).expand(-1, self._channels, -1, -1)
        try:
            (output,) = self._session.run([self._output], {self._input: x.contiguous().numpy()})
        except Exception:  # ONNX Runtime's errors have no common base
            raise ExportError(f"{self.path}: the network cannot take images of {size[0]}x{size[1]}") from None
        features = torch.from_numpy(output)
        return features.mean(dim=(2, 3)) if features.ndim == 4 else features


def frechet_distance(real: Tensor, generated: Tensor) -> float:
    """Return the Frechet distance of Gaussians that are fitted to the features (Heusel 2017, arXiv 1706.08500).

    It is |mu_r - mu_g|^2 + tr(S_r + S_g - 2 (S_r S_g)^(1/2)).

    For centred features A, B the last trace is the sum of singular values of A B^T. torchmetrics takes the eigenvalues of
    S_r S_g instead: the same mathematics, but with fewer images than features, as sites have, it loses digits and minutes.

    Shape: (N, D) and (M, D), N and M at least 2.
    """
    gap = (real.double().mean(dim=0) - generated.double().mean(dim=0)).square().sum()
    a, b = (_centred(features.double()) for features in (real, generated))
    spread = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return max(0.0, float(gap + spread))  # rounding may leave -1e-15


def _centred(features: Tensor) -> Tensor:
    """Return a matrix A of at most D rows such that A^T A is the covariance of the features."""
    a = (features - features.mean(dim=0)) / (len(features) - 1) ** 0.5
    return torch.linalg.qr(a, mode="r").R if len(a) > a.shape[1] else a


def kernel_distance(real: Tensor, generated: Tensor, seed: int = 0) -> float:
    """Return the unbiased squared MMD under the kernel (x y / D + 1)^3 (Binkowski 2018, arXiv 1801.01401).

    It may fall below 0 by chance. It is the mean over random subsets of min(N, M, 1000) images each, which `seed` alone
    determines. Where one subset would hold all images of both sets, there is only one.

    Shape: (N, D) and (M, D), N and M at least 2.
    """
    from torchmetrics.image.kid import poly_mmd

    size = min(len(real), len(generated), SUBSET_SIZE)
    draw = torch.Generator().manual_seed(seed)
    distances = []
    for _ in range(1 if size == len(real) == len(generated) else SUBSETS):
        a, b = (f[torch.randperm(len(f), generator=draw)[:size]].double() for f in (real, generated))
        distances.append(poly_mmd(a, b))
    return float(torch.stack(distances).mean())


def generator_scores(real: Tensor, generated: Tensor, features: Features) -> dict[str, Any]:
    """Return the distances between real and generated images and how they cover each other, safe for JSON.

    With the features of a file the keys are `fid` and `kid`, with those of a solver `fid_solver_encoder` and
    `kid_solver_encoder`, 0 where the features do not tell the images apart; beside them those of `coverage_scores`.
    `features` says where they come from, `num_real` and `num_generated` how many images there were. The same images give
    the same scores; torch's global random state is left alone.

    Shape: (N, C, R, R) and (M, C, R, R), in [-1, 1].

    Raises:
        ValueError: the images differ in channels or size.
        DataError: there are fewer than 2 images of either kind, or features that are not finite.
        ExportError: the ONNX file cannot take the images.
    """
    if real.ndim != 4 or real.shape[1:] != generated.shape[1:]:
        raise ValueError(f"real and generated images must be alike, not {tuple(real.shape)} and {tuple(generated.shape)}")
    if min(len(real), len(generated)) < 2:
        raise DataError(f"scores of a generator need 2 images at least, not {len(real)} real and {len(generated)} generated")
    a, b = (torch.cat([features(part).cpu() for part in images.split(BATCH)]) for images in (real, generated))
    for kind, values in (("real", a), ("generated", b)):
        if not values.isfinite().all():
            raise DataError(f"the features of {kind} images are not finite: {features.source}")
    return {
        f"fid{features.suffix}": frechet_distance(a, b),
        f"kid{features.suffix}": kernel_distance(a, b),
        **coverage_scores(a, b),
        "features": features.source,
        "num_real": len(real),
        "num_generated": len(generated),
    }
