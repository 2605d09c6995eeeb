#!/usr/bin/env python3
"""Times a training step of the same cross-layer transcoder in dense PyTorch 2, as it is commonly
written, to compare `clt bench step` with: the same formulas, data recipe and AdamW, BatchTopK by
torch.topk, dense products, float32 master weights. Letters as in README.md. When F is too large
it is halved until the step runs; compare such runs by ns_per_token_feature. Prints one JSON object.
Exit codes: 0 done, 1 cannot run here (no PyTorch, no GPU, too little memory), 2 wrong arguments.

usage: tools/bench_torch_dense.py [--features N] [--batch N] [--json FILE] [...]
"""
from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import NamedTuple

try:
    import torch
except ImportError:
    torch = None  # arguments are judged first, and --help works without it

SEED = 1
BATCHES = 3  # taken in turns, as in clt bench step
DIRECTIONS, ACTIVE_DIRECTIONS, NOISE = 64, 8, 0.1  # src/analyse/synthetic.cpp
TOO_LARGE = ("out of memory", "ALLOC_FAILED", "can't allocate memory", "INT_MAX")  # last: topk
OPTIONS = {  # name: smallest, default, help
    "layers": (1, 12, "L"),
    "d-model": (1, 768, "d"),
    "features": (1, 24576, "largest F tried"),
    "k": (1, 200, "active features a token over all layers"),
    "batch": (1, 4096, "B"),
    "steps": (1, 10, "timed steps"),
    "warmup": (0, 3, "steps before the clock starts"),
}


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"{self.prog}: {message}\n")


def parse_arguments() -> argparse.Namespace:
    parser = Parser(usage=argparse.SUPPRESS, description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (_, default, text) in OPTIONS.items():
        parser.add_argument("--" + name, type=int, default=default, metavar="N", help=text)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--json", default="-", metavar="FILE", help="-: standard output")
    args = parser.parse_args()
    for name, (smallest, _, _) in OPTIONS.items():
        if getattr(args, name.replace("-", "_")) < smallest:
            parser.error(f"argument --{name}: expected at least {smallest}")
    if args.json != "-" and (Path(args.json).is_dir() or not Path(args.json).parent.is_dir()):
        parser.error(f"argument --json: cannot write a file {args.json!r}")
    return args


class Transcoder(NamedTuple):
    encoder: list[torch.Tensor]  # [L] of [F, d]
    encoder_bias: list[torch.Tensor]  # [L] of [F]
    decoder: list[list[torch.Tensor]]  # decoder[t][s], s <= t: [F, d]
    decoder_bias: list[torch.Tensor]  # [L] of [d]


def make_transcoder(args: argparse.Namespace, features: int) -> Transcoder:
    """Uniform weights within the bounds of src/model/params.cpp, biases zero."""
    torch.manual_seed(SEED)
    layers, d = range(args.layers), args.d_model
    def parameter(bound: float, *shape: int) -> torch.Tensor:
        return torch.empty(shape, device=args.device).uniform_(-bound, bound).requires_grad_()

    return Transcoder(
        [parameter(features**-0.5, features, d) for _ in layers],
        [parameter(0, features) for _ in layers],
        [[parameter((args.layers * d) ** -0.5, features, d) for _ in range(t + 1)] for t in layers],
        [parameter(0, d) for _ in layers])


def make_optimizer(model: Transcoder, device: str) -> torch.optim.Optimizer:
    """clt's defaults; weights decay, biases do not."""
    groups = [{"params": model.encoder + sum(model.decoder, [])},
              {"params": model.encoder_bias + model.decoder_bias, "weight_decay": 0.0}]
    fused = {"fused": True} if device == "cuda" else {}
    return torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.01, **fused)  # betas, eps: the same


def synthetic_batch(args: argparse.Namespace, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets on the device, each [L, B, d]."""
    shared, own = [torch.Generator(args.device).manual_seed(s) for s in (SEED, SEED + 1 + number)]

    def uniform(low: float, high: float, generator: torch.Generator, *shape: int) -> torch.Tensor:
        return torch.empty(shape, device=args.device).uniform_(low, high, generator=generator)

    width = args.layers * args.d_model
    coefficients = uniform(0.5, 1.5, own, args.batch, ACTIVE_DIRECTIONS)
    chosen = torch.randint(DIRECTIONS, coefficients.shape, generator=own, device=args.device)
    x = torch.zeros(args.batch, DIRECTIONS, device=args.device)
    x = x.scatter_add_(1, chosen, coefficients) @ uniform(-1, 1, shared, DIRECTIONS, width)
    x += uniform(-NOISE, NOISE, own, args.batch, width)
    x = x.view(args.batch, args.layers, args.d_model).transpose(0, 1).contiguous()
    return x, x.roll(-1, dims=2) - 0.5 * torch.cat([x[:1], x[:-1]])


def batch_topk(pre: torch.Tensor, k: int) -> torch.Tensor:
    """pre [L, B, F]: keeps the k * B largest over all layers and tokens, none of them <= 0."""
    flat = pre.relu().flatten()
    values, indices = torch.topk(flat, min(k * pre.shape[1], flat.numel()), sorted=False)
    return torch.zeros_like(flat).scatter(0, indices, values).view_as(pre)


def loss_of(model: Transcoder, x: torch.Tensor, y: torch.Tensor, k: int) -> torch.Tensor:
    """Sum over target layers of the mean over tokens and d of the squared error. x, y [L, B, d]."""
    pre = torch.stack([torch.nn.functional.linear(*layer)
                       for layer in zip(x, model.encoder, model.encoder_bias)])
    acts = batch_topk(pre, k).unbind()
    errors = (sum((a @ decoder for a, decoder in zip(acts, decoders)), bias) - target
              for target, decoders, bias in zip(y, model.decoder, model.decoder_bias))
    return sum(error.square().mean() for error in errors)


def time_steps(args: argparse.Namespace, features: int) -> tuple[list[float], list[float]]:
    """The loss of every step and the seconds of the timed ones, with F = features."""
    data = [synthetic_batch(args, number) for number in range(BATCHES)]  # no upload in the step
    model = make_transcoder(args, features)
    optimizer = make_optimizer(model, args.device)
    losses, step_s = [], []
    for step in range(args.warmup + args.steps):
        x, y = data[step % BATCHES]
        start = time.perf_counter()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.dtype == "bfloat16"):
            loss = loss_of(model, x, y, args.k)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss.item())  # waits for the whole stream, the update too
        if step >= args.warmup:
            step_s.append(time.perf_counter() - start)
    return losses, step_s


def report(args: argparse.Namespace, features: int) -> dict:
    """What the JSON object holds. Raises RuntimeError when F is too large."""
    cuda = args.device == "cuda"
    losses, step_s = time_steps(args, features)
    median_s = statistics.median(step_s)
    return {
        "ms_per_step": 1e3 * median_s,
        "tokens_per_s": args.batch / median_s,
        "ns_per_token_feature": 1e9 * median_s / (args.batch * features),
        "features": features,
        "peak_memory_bytes": torch.cuda.max_memory_allocated() if cuda
        else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,  # Linux counts in KiB
        "loss_first": losses[0] if math.isfinite(losses[0]) else None,
        "loss_last": losses[-1] if math.isfinite(losses[-1]) else None,
        "asked": {name: value for name, value in vars(args).items() if name != "json"},
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
    }


def report_largest(args: argparse.Namespace) -> dict:
    features = args.features
    while features > 0:
        try:
            return report(args, features)
        except RuntimeError as error:
            if not any(words in str(error) for words in TOO_LARGE):
                raise
            print(f"F = {features} does not run: {str(error).splitlines()[0]}", file=sys.stderr)
        features //= 2
        gc.collect()  # the failed step's tensors, before the next try needs their room
        if args.device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
    sys.exit("bench_torch_dense: not even one feature a layer fits in memory")


def main() -> None:
    args = parse_arguments()
    if torch is None:
        sys.exit("bench_torch_dense: PyTorch is not installed for this Python")
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("bench_torch_dense: PyTorch sees no CUDA device; --device cpu runs without one")
    text = json.dumps(report_largest(args), indent=2) + "\n"
    if args.json == "-":
        sys.stdout.write(text)
    else:
        Path(args.json).write_text(text)


if __name__ == "__main__":
    main()
