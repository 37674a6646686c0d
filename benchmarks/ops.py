"""Each op with its library against the same in torch's own operations, at the networks' sizes.

    python benchmarks/ops.py --device cpu
    python benchmarks/ops.py --device cuda --sides 64 256 512      # adds torch.compile and the share of the copy rate

Both forms run in turn; a row gives medians, and the median of the ratios of neighbouring runs.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from relay_core.cuda import ACTIVATIONS, loader, setup_filter
from relay_core.cuda.ops import bias_act_reference as plain_bias_act
from relay_core.cuda.ops import epilogue_reference as plain_epilogue
from relay_core.cuda.ops import upfirdn2d_reference as plain_upfirdn2d
from relay_core.models.stylegan2 import SYM6

Run = Callable[[], object]


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--sides", type=int, nargs="+", default=[64], help="pixels of an image's side")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--contiguous", action="store_true", help="not channels-last, which the networks are")
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    gpu = device.type == "cuda"
    print(f"{loader.backend(device.type, device.index)} library, {dtype}")
    heads = ["op", "tensor", "library ms", "torch ms", "torch / library"]
    heads += ["torch.compile ms", "GB/s", "share of the copy rate"] if gpu else []
    print("| " + " | ".join(heads) + " |\n" + "|---" * len(heads) + "|")
    for side in args.sides:
        for name, x, moved, ours, plain in cases(args.batch, side, device, dtype, not args.contiguous):
            runs = [ours, plain] + ([torch.compile(plain), copier(moved, device)] if gpu else [])
            times = alternate(runs, args.repeat, device)
            a, b = (statistics.median(t) for t in times[:2])
            ratio = statistics.median(q / p for p, q in zip(*times[:2], strict=True))
            row = [name, "x".join(map(str, x.shape)), f"{a * 1e3:.3f}", f"{b * 1e3:.3f}", f"{ratio:.2f}"]
            if gpu:
                row += [f"{statistics.median(times[2]) * 1e3:.3f}", f"{moved / a / 1e9:.0f}"]
                row += [f"{statistics.median(times[3]) / a:.0%}"]
            print("| " + " | ".join(row) + " |", flush=True)


def cases(
    batch: int, side: int, device: torch.device, dtype: torch.dtype, last: bool
) -> Iterator[tuple[str, Tensor, int, Run, Run]]:
    """Name, tensor, least bytes that the op must move, library form, torch form."""
    channels = min(8192 // side, 256)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    x, ops = random(batch, channels, side, side), torch.ops.relay
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    bytes_of = x.numel() * x.element_size()
    b, gain = random(channels), ACTIVATIONS["lrelu"].gain
    numbers = (0.2, gain, math.inf if dtype == torch.float32 else 256.0)
    yield (
        "bias_act", x, 2 * bytes_of, lambda: ops.bias_act(x, b, 1, "lrelu", *numbers),
        lambda: plain_bias_act(x, b, 1, "lrelu", *numbers),
    )  # fmt: skip
    yield (
        "bias_act, forward and backward",
        x,
        6 * bytes_of,
        *both(lambda t: ops.bias_act(t, b, 1, "lrelu", *numbers), lambda t: plain_bias_act(t, b, 1, "lrelu", *numbers), x),
    )
    kind = loader.compute_dtype(x)
    scale, noise = random(batch, channels).to(kind).requires_grad_(), random(batch, 1, side, side)
    strength, bias = random(1).to(kind).requires_grad_(), b.to(kind).requires_grad_()
    rest = (scale, noise, strength, bias, *numbers)
    with_no_grad = [(torch.no_grad()(lambda f=f: f(x, *rest))) for f in (ops.epilogue, plain_epilogue)]
    yield "epilogue", x, 2 * bytes_of, with_no_grad[0], with_no_grad[1]
    yield (
        "epilogue, forward and backward",
        x,
        5 * bytes_of,
        *both(lambda t: ops.epilogue(t, *rest), lambda t: plain_epilogue(t, *rest), x, scale, strength, bias),
    )
    f = setup_filter([1, 3, 3, 1]).to(device)
    sym6 = setup_filter(SYM6).to(device)
    small = random(1, batch * 4, side + 12, side + 12)
    for name, t, taps, up, down, pads in (
        ("upfirdn2d [1,3,3,1]", x, f, 1, 1, (2, 2)), ("upfirdn2d [1,3,3,1] up 2", x, f, 2, 1, (2, 1)),
        ("upfirdn2d [1,3,3,1] down 2", x, f, 1, 2, (1, 1)), ("upfirdn2d sym6 up 2", small, sym6, 2, 1, (6, 5)),
        ("upfirdn2d sym6 down 2", small, sym6, 1, 2, (5, 5)),
    ):  # fmt: skip
        settings = (taps.to(kind), (up, up), (down, down), (*pads, *pads), False, float(up**2))
        moved = bytes_of // x.numel() * t.numel() * (1 + up**2 / down**2)
        yield (
            name, t, int(moved), lambda t=t, s=settings: ops.upfirdn2d(t, *s),
            lambda t=t, s=settings: plain_upfirdn2d(t, *s),
        )  # fmt: skip


def both(ours: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], x: Tensor, *others: Tensor) -> tuple[Run, Run]:
    """Forward and backward of two forms."""
    leaf, g = x.detach().requires_grad_(), torch.randn_like(x)
    return tuple(lambda f=f: torch.autograd.grad(f(leaf), [leaf, *others], g) for f in (ours, plain))


def copier(moved: int, device: torch.device) -> Run:
    """A copy on the device that reads and writes `moved` bytes together."""
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def alternate(runs: list[Run], repeat: int, device: torch.device) -> list[list[float]]:
    """Seconds of each, run in turn, after two rounds of warm-up."""
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(repeat + 2):
        for run, into in zip(runs, times, strict=True):
            seconds = clock(run, device)
            if turn >= 2:
                into.append(seconds)
    return times


def clock(run: Run, device: torch.device) -> float:
    """Seconds of one run; on a GPU by its own clock."""
    if device.type != "cuda":
        begin = time.perf_counter()
        run()
        return time.perf_counter() - begin
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3


if __name__ == "__main__":
    main()
