"""Times the operations of benches/operations.rs in PyTorch, and prints {name: seconds} as JSON.

    python benches/peer/operations.py conv3x3
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

MAPS = [(320, 64), (640, 32), (960, 16), (1280, 8), (320, 256), (640, 128), (960, 64), (1280, 32)]
SMALL = (16, 128, 16, 16)
WARM_UP, MEASURE, SAMPLES = 0.3, 1.0, 10


def operations():
    """Yields names and functions; tensors are made when a function is first needed."""
    for channels, side in MAPS:
        shape = (1, channels, side, side)
        yield name("conv3x3", shape), lambda c=channels, s=shape: conv(c, 3, s)
        yield name("conv1x1", shape), lambda c=channels, s=shape: conv(c, 1, s)
        yield name("bf16_conv3x3", shape), lambda c=channels, s=shape: conv(c, 3, s, torch.bfloat16)
        yield name("bf16_conv1x1", shape), lambda c=channels, s=shape: conv(c, 1, s, torch.bfloat16)
        yield name("group_norm_silu", shape), lambda c=channels, s=shape: group_norm(c, s, film=False)
        yield name("group_norm_film_silu", shape), lambda c=channels, s=shape: group_norm(c, s, film=True)
        yield name("silu", shape), lambda s=shape: of_one(F.silu, s)
    for shape in [(162, 2048), (154, 1280)]:
        tokens, width = shape
        wide = (tokens, 4 * width)
        yield name("layer_norm", shape), lambda w=width, s=shape: of_one(torch.nn.LayerNorm(w), s)
        yield name("gelu", wide), lambda s=wide: of_one(F.gelu, s)
        yield name("quick_gelu", wide), lambda s=wide: of_one(lambda x: x * torch.sigmoid(1.702 * x), s)
        yield name("linear", shape), lambda w=width, s=shape: of_one(torch.nn.Linear(w, 4 * w), s)
        yield name("bf16_linear", shape), lambda w=width, s=shape: of_one(torch.nn.Linear(w, 4 * w), s, torch.bfloat16)
    for shape in [(8, 1024, 1024, 64), (10, 1024, 1105, 64), (15, 256, 337, 64), (32, 81, 81, 64)]:
        yield name("attention", shape), lambda s=shape: attention(*s)
    channels = SMALL[1]
    yield name("train_conv3x3", SMALL), lambda: trained(torch.nn.Conv2d(channels, channels, 3, padding=1), SMALL)
    norm = torch.nn.GroupNorm(32, channels)
    yield name("train_group_norm_silu", SMALL), lambda: trained(lambda x: F.silu(norm(x)), SMALL)
    yield name("train_silu", SMALL), lambda: trained(F.silu, SMALL)
    yield name("train_linear", (16, 77, 192)), lambda: trained(torch.nn.Linear(192, 768), (16, 77, 192))


def name(operation, shape):
    return operation + "/" + "x".join(map(str, shape))


def of_one(function, shape, dtype=torch.float32):
    x = torch.randn(shape).to(dtype)
    function = function.to(dtype) if isinstance(function, torch.nn.Module) else function
    return lambda: function(x)


def conv(channels, kernel, shape, dtype=torch.float32):
    return of_one(torch.nn.Conv2d(channels, channels, kernel, padding=kernel // 2), shape, dtype)


def group_norm(channels, shape, film):
    norm, x = torch.nn.GroupNorm(32, channels), torch.randn(shape)
    if not film:
        return lambda: F.silu(norm(x))
    scale, shift = torch.randn(1, channels, 1, 1), torch.randn(1, channels, 1, 1)
    return lambda: F.silu(norm(x) * (1 + scale) + shift)


def attention(heads, queries, keys, dim):
    q, k, v = torch.randn(1, heads, queries, dim), torch.randn(1, heads, keys, dim), torch.randn(1, heads, keys, dim)
    return lambda: F.scaled_dot_product_attention(q, k, v)


def trained(function, shape):
    x = torch.randn(shape, requires_grad=True)
    return lambda: function(x).sum().backward()


def seconds(function):
    """Median over samples, each of as many runs as fit into its share of the time."""
    start, runs = time.perf_counter(), 0
    while time.perf_counter() - start < WARM_UP or runs == 0:
        function()
        runs += 1
    per_run = (time.perf_counter() - start) / runs
    repeat = max(1, int(MEASURE / SAMPLES / per_run))
    samples = []
    for _ in range(SAMPLES):
        start = time.perf_counter()
        for _ in range(repeat):
            function()
        samples.append((time.perf_counter() - start) / repeat)
    return statistics.median(samples)


def main():
    filters = sys.argv[1:]
    torch.manual_seed(0)
    found = {}
    for operation, prepare in operations():
        if filters and not any(operation.startswith(f) for f in filters):
            continue
        function = prepare()
        with torch.set_grad_enabled(operation.startswith("train_")):
            found[operation] = seconds(function)
    print(json.dumps({"versions": {"PyTorch": torch.__version__}, "threads": torch.get_num_threads(), "seconds": found}))


if __name__ == "__main__":
    main()
