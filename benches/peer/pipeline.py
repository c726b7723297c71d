"""Generates one image with diffusers and prints seconds per step and peak memory as JSON, in the form of
`cargo bench --bench pipeline -- --json FILE`.

    python benches/peer/pipeline.py MODEL --prior-steps 3 --decoder-steps 3 --upsampler-steps 3

A step ends with its network's forward pass, and its seconds are those since the step before it ended: the scheduler's
arithmetic is part of them. A stage's first step begins with the end of the stage before, the prior's with the call.
"""

import argparse
import json
import statistics
import time

import diffusers
import torch
from diffusers import UnCLIPPipeline

STAGES = {"prior": ["prior"], "decoder": ["decoder"], "upsampler 1": ["super_res_first", "super_res_last"]}


def peak_bytes():
    """The most that was resident since the last reset, as the other side counts it."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass  # without the right to do so the peak stays that of the whole run


def interpolate_in_float32():
    """PyTorch has no bicubic enlargement of bf16 on the CPU, which comes before super-resolution."""
    interpolate = torch.nn.functional.interpolate

    def through_float32(input, *args, **kwargs):
        return interpolate(input.float(), *args, **kwargs).to(input.dtype)

    torch.nn.functional.interpolate = through_float32


class Stage:
    """The ends of a stage's steps."""

    def __init__(self, name):
        self.name, self.start, self.ends, self.peak = name, None, [], 0

    def step(self, steps, peaks, following):
        self.ends.append(time.perf_counter())
        if len(self.ends) == steps:
            self.peak = peak_bytes()
            peaks.append(self.peak)
            reset_peak()
            if following:
                following.start = time.perf_counter()

    def json(self):
        first, *rest = [end - start for start, end in zip([self.start, *self.ends], self.ends)]
        return {
            "stage": self.name,
            "steps": len(self.ends),
            "first_step_seconds": first,
            "step_seconds": rest,
            "seconds_per_step": statistics.median(rest) if rest else None,
            "peak_bytes": self.peak,
        }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--caption", default="red apple")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    for stage in ["prior", "decoder", "upsampler"]:
        parser.add_argument(f"--{stage}-steps", type=int, default=2)
    cli = parser.parse_args()
    torch.manual_seed(0)
    if cli.dtype == "bfloat16":
        interpolate_in_float32()

    start = time.perf_counter()
    pipeline = UnCLIPPipeline.from_pretrained(cli.model, torch_dtype=getattr(torch, cli.dtype))
    pipeline.set_progress_bar_config(disable=True)
    opening = time.perf_counter() - start

    stages = [Stage(name) for name in STAGES]
    counts = [cli.prior_steps, cli.decoder_steps, cli.upsampler_steps]
    peaks = [peak_bytes()]
    reset_peak()
    for stage, steps, following in zip(stages, counts, [*stages[1:], None]):
        for network in STAGES[stage.name]:
            ended = lambda *_, stage=stage, steps=steps, following=following: stage.step(steps, peaks, following)
            getattr(pipeline, network).register_forward_hook(ended)
    stages[0].start = start = time.perf_counter()
    pipeline(
        cli.caption,
        prior_num_inference_steps=cli.prior_steps,
        decoder_num_inference_steps=cli.decoder_steps,
        super_res_num_inference_steps=cli.upsampler_steps,
    )
    seconds = time.perf_counter() - start
    peaks.append(peak_bytes())
    print(
        json.dumps(
            {
                "versions": {"PyTorch": torch.__version__, "diffusers": diffusers.__version__},
                "threads": torch.get_num_threads(),
                "opening_seconds": opening,
                "seconds": seconds,
                "peak_bytes": max(peaks),
                "stages": [stage.json() for stage in stages],
            }
        )
    )


if __name__ == "__main__":
    main()
