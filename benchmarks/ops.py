"""Each op with its library against the same in torch's own operations, at the networks' sizes.

    python -m benchmarks.ops --device cpu --threads 1
    python -m benchmarks.ops --device cuda --sides 64 256 512

All forms run in turn; a row gives medians, and the median of the ratios of neighbouring runs. GB/s are the least bytes that
the op must move by its seconds, and stand next to the rate of a copy of as many bytes.
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.record import Record, script
from benchmarks.timing import Run, alternate, device_seconds, ratio
from relay_core.cuda import ACTIVATIONS, loader, setup_filter
from relay_core.cuda.ops import bias_act_reference as plain_bias_act
from relay_core.cuda.ops import epilogue_reference as plain_epilogue
from relay_core.cuda.ops import upfirdn2d_reference as plain_upfirdn2d
from relay_core.engine import choose_device
from relay_core.models.stylegan2 import SYM6

COLUMNS = {
    "op": "", "tensor": "", "library ms": ".3f", "torch ms": ".3f", "torch / library": ".2f", "torch.compile ms": ".3f",
    "GB/s": ".0f", "copy GB/s": ".0f", "share of the copy's rate": ".0%",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """An op on a tensor: the least bytes that it must move, its form in the library, and its definition in torch."""

    name: str
    x: Tensor
    moved: int
    ours: Run
    plain: Run


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options."""
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--sides", type=int, nargs="+", default=[64], help="pixels of an image's side")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--contiguous", action="store_true", help="not channels-last, which the networks are")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--compile", metavar="BACKEND", help="time torch.compile too; a GPU does, with inductor")


def measure(args: argparse.Namespace, record: Record) -> None:
    """Fill one table."""
    torch.set_num_threads(args.threads)
    device, dtype = choose_device(args.device), getattr(torch, args.dtype)
    compiler = args.compile or ("inductor" if device.type == "cuda" else None)
    record.facts |= {"library": loader.backend(device.type, device.index), "device": str(device)}
    table = record.table(f"Operations on {device}, {args.dtype}: {record.facts['library']} library", COLUMNS)
    for side in args.sides:
        for case in cases(args.batch, side, device, dtype, not args.contiguous):
            runs = {"ours": case.ours, "plain": case.plain, "copy": copier(case.moved, device)}
            if compiler and (compiled := compiled_form(case, compiler, record)):
                runs["compiled"] = compiled
            times = alternate(runs, args.repeat, partial(device_seconds, device=device))
            middle = {name: statistics.median(each) for name, each in times.items()}
            table.add(
                case.name, "x".join(map(str, case.x.shape)), middle["ours"] * 1e3, middle["plain"] * 1e3,
                ratio(times["plain"], times["ours"]), middle["compiled"] * 1e3 if "compiled" in middle else None,
                case.moved / middle["ours"] / 1e9, case.moved / middle["copy"] / 1e9, ratio(times["copy"], times["ours"]),
            )  # fmt: skip


def compiled_form(case: Case, compiler: str, record: Record) -> Run | None:
    """The definition under torch.compile, compiled already; None, with a note, where it cannot be."""
    torch.compiler.reset()
    run: Run = torch.compile(case.plain, backend=compiler, dynamic=False)
    try:
        run()
    except Exception as error:  # whatever a compiler meets: the other figures matter without it
        record.note(f"torch.compile of {case.name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
        return None
    return run


def cases(batch: int, side: int, device: torch.device, dtype: torch.dtype, last: bool) -> Iterator[Case]:
    """The ops at the sizes that the networks have for images of `side` pixels."""
    channels = min(8192 // side, 256)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, device=device, dtype=dtype)

    x, ops = random(batch, channels, side, side), torch.ops.relay
    x = x.to(memory_format=torch.channels_last if last else torch.contiguous_format)
    size = x.numel() * x.element_size()
    b, gain = random(channels), ACTIVATIONS["lrelu"].gain
    numbers = (0.2, gain, math.inf if dtype == torch.float32 else 256.0)
    activation = [lambda t, f=f: f(t, b, 1, "lrelu", *numbers) for f in (ops.bias_act, plain_bias_act)]
    yield Case("bias_act", x, 2 * size, *(partial(f, x) for f in activation))
    yield Case("bias_act, forward and backward", x, 6 * size, *both(activation, x))
    kind = loader.compute_dtype(x)
    scale, noise = random(batch, channels).to(kind).requires_grad_(), random(batch, 1, side, side)
    strength, bias = random(1).to(kind).requires_grad_(), b.to(kind).requires_grad_()
    rest = (scale, noise, strength, bias, *numbers)
    layer = [lambda t, f=f: f(t, *rest) for f in (ops.epilogue, plain_epilogue)]
    yield Case("epilogue", x, 2 * size, *(torch.no_grad()(partial(f, x)) for f in layer))
    yield Case("epilogue, forward and backward", x, 5 * size, *both(layer, x, scale, strength, bias))
    f, sym6 = (setup_filter(taps).to(device=device, dtype=kind) for taps in ([1, 3, 3, 1], SYM6))
    small = random(1, batch * 4, side + 12, side + 12)
    for name, t, taps, up, down, pads in (
        ("upfirdn2d [1,3,3,1]", x, f, 1, 1, (2, 2)), ("upfirdn2d [1,3,3,1] up 2", x, f, 2, 1, (2, 1)),
        ("upfirdn2d [1,3,3,1] down 2", x, f, 1, 2, (1, 1)), ("upfirdn2d sym6 up 2", small, sym6, 2, 1, (6, 5)),
        ("upfirdn2d sym6 down 2", small, sym6, 1, 2, (5, 5)),
    ):  # fmt: skip
        settings = (taps, (up, up), (down, down), (*pads, *pads), False, float(up**2))
        moved = int(t.numel() * t.element_size() * (1 + up**2 / down**2))
        yield Case(name, t, moved, *(partial(f, t, *settings) for f in (ops.upfirdn2d, plain_upfirdn2d)))


def both(forms: list[Callable[[Tensor], Tensor]], x: Tensor, *others: Tensor) -> list[Run]:
    """Forward and backward of each form."""
    leaf, g = x.detach().requires_grad_(), torch.randn_like(x)
    return [lambda f=f: torch.autograd.grad(f(leaf), [leaf, *others], g) for f in forms]


def copier(moved: int, device: torch.device) -> Run:
    """A copy on the device that reads and writes `moved` bytes together."""
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


main = script(__doc__, arguments, measure, toy={"sides": [16], "batch": 2, "repeat": 1, "threads": 1, "device": "auto"})

if __name__ == "__main__":
    main()
