"""Generates one image with diffusers and prints seconds per step and peak memory as JSON, in the form of
`bench_pipeline --json`.

    python benches/peer/pipeline.py MODEL --prior-steps 2 --decoder-steps 2 --upsampler-steps 2
"""

import argparse
import json
import statistics
import time

import torch
from diffusers import UnCLIPPipeline

STAGES = {"prior": ["prior"], "decoder": ["decoder"], "upsampler 1": ["super_res_first", "super_res_last"]}


def peak_bytes():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--caption", default="red apple")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    for stage in ["prior", "decoder", "upsampler"]:
        parser.add_argument(f"--{stage}-steps", type=int, default=2)
    cli = parser.parse_args()
    torch.manual_seed(0)

    start = time.perf_counter()
    pipeline = UnCLIPPipeline.from_pretrained(cli.model, torch_dtype=getattr(torch, cli.dtype))
    pipeline.set_progress_bar_config(disable=True)
    opening = time.perf_counter() - start

    steps = {stage: [] for stage in STAGES}
    for stage, networks in STAGES.items():
        for network in networks:
            module = getattr(pipeline, network)
            module.register_forward_pre_hook(lambda module, _: setattr(module, "began", time.perf_counter()))
            record = steps[stage].append
            module.register_forward_hook(lambda module, *_, record=record: record(time.perf_counter() - module.began))
    start = time.perf_counter()
    pipeline(
        cli.caption,
        prior_num_inference_steps=cli.prior_steps,
        decoder_num_inference_steps=cli.decoder_steps,
        super_res_num_inference_steps=cli.upsampler_steps,
    )
    stages = [
        {"stage": stage, "steps": len(times), "seconds_per_step": statistics.median(times)}
        for stage, times in steps.items()
    ]
    print(
        json.dumps(
            {
                "version": torch.__version__,
                "threads": torch.get_num_threads(),
                "opening_seconds": opening,
                "seconds": time.perf_counter() - start,
                "peak_bytes": peak_bytes(),
                "stages": stages,
            }
        )
    )


if __name__ == "__main__":
    main()
