#!/usr/bin/env python3
"""A small unCLIP checkpoint in the layout of diffusers, and what diffusers computes with it.

    python tests/reference/make_unclip.py OUT [--sizes square|tall] [--seed N]
    python tests/reference/make_unclip.py OUT --pipeline DIR

OUT/pipeline/           UnCLIPPipeline
OUT/image_variation/    what UnCLIPImageVariationPipeline has instead of a prior
OUT/fixtures/           inputs and outputs of every part, scheduler sequences, two generations with every noise and latent
OUT/manifest.json       prompts, steps and versions

The weights are random, no tensor is constant, so a tensor that is dropped or swapped shows. `square` has the sizes of
tests/fixtures/tiny-unclip (two levels, one block each, FiLM in the decoder), `tall` those of tests/fixtures/tall-unclip
(three levels, two blocks each, FiLM in the super-resolution, attention on the finest level, head sizes that differ).
With --pipeline the checkpoint is not made but opened: DIR is a text-to-image pipeline with an image encoder, written by this
library or by diffusers. If `cargo run --release -p xtask -- parity OUT` then passes, diffusers computes with DIR what this library computes.

Needs diffusers 0.36, transformers 4.57 and torch; a CPU is enough.
"""

import argparse
import gzip
import importlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import torch

torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)

import diffusers
import diffusers.schedulers.scheduling_unclip as scheduling
import transformers
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel, UnCLIPImageVariationPipeline, UnCLIPPipeline, UnCLIPScheduler
from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer, CLIPVisionConfig, CLIPVisionModelWithProjection

PROMPTS = ["Woman firefighter: Dark skin tone", "a green heart's café 7", ""]
DOWN, CROSS_DOWN = "ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"
UP, CROSS_UP = "ResnetUpsampleBlock2D", "SimpleCrossAttnUpBlock2D"

SIZES = {
    "square": dict(
        width=32, merges=486, context=77, decoder_size=16, super_size=32, cross=20, extra_tokens=4,
        text=dict(intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, hidden_act="quick_gelu"),
        image=dict(hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4, image_size=24, patch_size=8,
                   hidden_act="quick_gelu"),
        prior=dict(num_attention_heads=2, attention_head_dim=12, num_layers=2),
        decoder=dict(block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
                     down_block_types=(DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, UP), resnet_time_scale_shift="scale_shift"),
        super_res=dict(block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, resnet_time_scale_shift="default"),
        steps=dict(prior=4, decoder=4, sr=3),
    ),
    "tall": dict(
        width=24, merges=60, context=33, decoder_size=8, super_size=24, cross=12, extra_tokens=3,
        text=dict(intermediate_size=20, num_hidden_layers=3, num_attention_heads=3, hidden_act="gelu"),
        image=dict(hidden_size=20, intermediate_size=28, num_hidden_layers=3, num_attention_heads=5, image_size=18, patch_size=6,
                   hidden_act="gelu"),
        prior=dict(num_attention_heads=3, attention_head_dim=10, num_layers=3),
        decoder=dict(block_out_channels=(8, 12, 16), layers_per_block=2, norm_num_groups=4, norm_eps=1e-6, attention_head_dim=(4, 2, 8),
                     down_block_types=(CROSS_DOWN, DOWN, CROSS_DOWN), up_block_types=(CROSS_UP, CROSS_UP, UP),
                     resnet_time_scale_shift="default"),
        super_res=dict(block_out_channels=(4, 8, 12), layers_per_block=2, norm_num_groups=4, resnet_time_scale_shift="scale_shift"),
        steps=dict(prior=6, decoder=5, sr=4),
    ),
}


def write_tokenizer(folder, sizes):
    """CLIP's byte-pair tokenizer, cut to its first merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in printable]
    chars = [chr(b) for b in printable] + [chr(256 + i) for i in range(len(others))]
    # The list that CLIP published; it is embedded in dalle2-core.
    source = Path(__file__).parents[2] / "dalle2-core/src/text/bpe_simple_vocab_16e6.txt.gz"
    lines = gzip.open(source, "rt", encoding="utf-8").read().split("\n")
    merges = [tuple(line.split()) for line in lines[1 : sizes["merges"] + 1]]
    tokens = chars + [c + "</w>" for c in chars] + ["".join(m) for m in merges] + ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
    special = dict(bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>", pad_token="<|endoftext|>")
    config = dict(tokenizer_class="CLIPTokenizer", model_max_length=sizes["context"], **special)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(tokens)


@torch.no_grad()
def init(model, seed):
    """Fills every parameter, in the order of names, from one stream of numbers."""
    stream = np.random.RandomState(1000 + seed)
    for name, parameter in sorted(model.named_parameters()):
        z = stream.standard_normal(tuple(parameter.shape)).astype(np.float32)
        norm = "norm" in name or "layrnorm" in name
        if name.endswith("clip_std"):
            z = 0.5 + np.abs(z) * 0.3
        elif norm and name.endswith("weight"):
            z = 1 + 0.1 * z
        elif name.endswith("bias"):
            z = 0.1 * z
        elif parameter.dim() <= 1 or "embedding.weight" in name or name.endswith(("positional_embedding", "prd_embedding", "clip_mean")):
            z = 0.5 * z
        else:
            z = z * float(np.prod(parameter.shape[1:])) ** -0.5
        parameter.copy_(torch.from_numpy(np.asarray(z, dtype=np.float32)))
    return model.eval()


class Noise:
    """Takes the place of `randn_tensor` and keeps what it gave."""

    def __init__(self, seed):
        self.stream, self.log = np.random.RandomState(seed), []

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        z = torch.from_numpy(self.stream.standard_normal(tuple(shape)).astype(np.float32)).to(dtype or torch.float32)
        self.log.append(z)
        return z


def build(out, sizes):
    """Both pipelines, saved."""
    vocabulary = write_tokenizer(out / "tokenizer", sizes)
    d, start, end = sizes["width"], vocabulary - 2, vocabulary - 1
    text = CLIPTextConfig(vocab_size=vocabulary, hidden_size=d, projection_dim=d, max_position_embeddings=sizes["context"],
                          bos_token_id=start, eos_token_id=end, pad_token_id=end, **sizes["text"])
    sr = dict(sample_size=sizes["super_size"], in_channels=6, out_channels=3, add_attention=False, **sizes["super_res"])
    levels = len(sr["block_out_channels"])
    sr.update(down_block_types=(DOWN,) * levels, up_block_types=(UP,) * levels)
    side = sizes["image"]["image_size"]
    shared = dict(
        text_encoder=init(CLIPTextModelWithProjection(text), 0),
        tokenizer=CLIPTokenizer.from_pretrained(out / "tokenizer"),
        text_proj=init(UnCLIPTextProjModel(clip_embeddings_dim=d, time_embed_dim=4 * sizes["decoder"]["block_out_channels"][0],
                                           cross_attention_dim=sizes["cross"], clip_extra_context_tokens=sizes["extra_tokens"]), 3),
        decoder=init(UNet2DConditionModel(sample_size=sizes["decoder_size"], in_channels=3, out_channels=6, cross_attention_dim=sizes["cross"],
                                          mid_block_type="UNetMidBlock2DSimpleCrossAttn", class_embed_type="identity", **sizes["decoder"]), 4),
        super_res_first=init(UNet2DModel(**sr), 5),
        super_res_last=init(UNet2DModel(**sr), 6),
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range", prediction_type="epsilon"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="epsilon"),
    )
    pipeline = UnCLIPPipeline(
        prior=init(PriorTransformer(embedding_dim=d, num_embeddings=sizes["context"], additional_embeddings=4, **sizes["prior"]), 2),
        prior_scheduler=UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample", clip_sample_range=5.0),
        **shared,
    )
    variation = UnCLIPImageVariationPipeline(
        image_encoder=init(CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=d, **sizes["image"])), 1),
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        **shared,
    )
    for p in (pipeline, variation):
        p.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(out / "pipeline")
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(out / "tokenizer" / name, out / "pipeline/tokenizer" / name)
    shutil.rmtree(out / "tokenizer")
    variation.save_pretrained(out / "image_variation")
    for folder in (out / "image_variation").iterdir():
        if (out / "pipeline" / folder.name).is_dir():
            shutil.rmtree(folder)
    return pipeline, variation


def open_pipeline(out, directory):
    """Both pipelines of a directory that is there, and the sizes that the recordings need."""
    pipeline = UnCLIPPipeline.from_pretrained(directory)
    parts = {name: part for name, part in pipeline.components.items() if not name.startswith("prior")}
    image_encoder = CLIPVisionModelWithProjection.from_pretrained(directory, subfolder="image_encoder")
    feature_extractor = CLIPImageProcessor.from_pretrained(directory, subfolder="feature_extractor")
    variation = UnCLIPImageVariationPipeline(image_encoder=image_encoder, feature_extractor=feature_extractor, **parts)
    for p in (pipeline, variation):
        p.set_progress_bar_config(disable=True)
    shutil.copytree(directory, out / "pipeline")
    for name in ("image_encoder", "feature_extractor"):
        shutil.copytree(directory / name, out / "image_variation" / name)
    sizes = dict(width=pipeline.prior.config.embedding_dim, context=pipeline.tokenizer.model_max_length,
                 decoder_size=pipeline.decoder.config.sample_size, super_size=pipeline.super_res_first.config.sample_size,
                 extra_tokens=pipeline.text_proj.config.clip_extra_context_tokens, steps=dict(prior=4, decoder=4, sr=3))
    return pipeline, variation, sizes


def generate(pipeline, sizes, source, seed):
    """A generation with its noises, its latents and the embedding that the decoder reads."""
    module = importlib.import_module(type(pipeline).__module__)
    noise, latents, embedding = Noise(seed), [], []
    originals = module.randn_tensor, scheduling.randn_tensor, UnCLIPScheduler.step

    def step(self, *args, **kwargs):
        output = originals[2](self, *args, **kwargs)
        latents.append(output.prev_sample.clone())
        return output

    module.randn_tensor = scheduling.randn_tensor = noise
    UnCLIPScheduler.step = step
    hook = pipeline.text_proj.register_forward_pre_hook(lambda _, args, kwargs: embedding.append(kwargs["image_embeddings"].clone()), with_kwargs=True)
    steps = sizes["steps"]
    options = dict(decoder_num_inference_steps=steps["decoder"], super_res_num_inference_steps=steps["sr"], decoder_guidance_scale=8.0, output_type="np")
    if isinstance(pipeline, UnCLIPPipeline):
        options.update(prior_num_inference_steps=steps["prior"], prior_guidance_scale=4.0)
    image = pipeline(source, **options).images
    hook.remove()
    module.randn_tensor, scheduling.randn_tensor, UnCLIPScheduler.step = originals
    return noise.log, latents, embedding[0], torch.from_numpy(np.asarray(image))


def numbered(prefix, tensors):
    return {f"{prefix}_{k:02d}": tensor for k, tensor in enumerate(tensors)}


@torch.no_grad()
def record(out, sizes, pipeline, variation, seed):
    stream = np.random.RandomState(7)
    normal = lambda *shape: torch.from_numpy(stream.standard_normal(shape).astype(np.float32))

    def dump(name, **tensors):
        (out / "fixtures").mkdir(exist_ok=True)
        save_file({k: v.detach().contiguous().clone() for k, v in tensors.items()}, out / f"fixtures/{name}.safetensors")

    d, context = sizes["width"], sizes["context"]
    encoded = pipeline.tokenizer(PROMPTS, padding="max_length", max_length=context, truncation=True, return_tensors="pt")
    text = pipeline.text_encoder(encoded.input_ids, output_hidden_states=True)
    dump("text_encoder", input_ids=encoded.input_ids, attention_mask=encoded.attention_mask, hidden_state_0=text.hidden_states[0],
         hidden_state_1=text.hidden_states[1], last_hidden_state=text.last_hidden_state, text_embeds=text.text_embeds)

    pixels = stream.randint(0, 256, (37, 45, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((9, 7), Image.BILINEAR).resize((45, 37), Image.BICUBIC)
    pixel_values = variation.feature_extractor(images=image, return_tensors="pt").pixel_values
    dump("feature_extractor", image_hwc_u8=torch.from_numpy(np.array(image)), pixel_values=pixel_values)
    pixel_values = torch.cat([pixel_values, normal(*pixel_values.shape)])
    vision = variation.image_encoder(pixel_values, output_hidden_states=True)
    dump("image_encoder", pixel_values=pixel_values, hidden_state_0=vision.hidden_states[0], last_hidden_state=vision.last_hidden_state,
         image_embeds=vision.image_embeds)

    mask, x, t = encoded.attention_mask.bool(), normal(3, d), torch.tensor([999, 333, 0])
    prior = lambda mask: pipeline.prior(x, t, proj_embedding=text.text_embeds, encoder_hidden_states=text.last_hidden_state,
                                        attention_mask=mask).predicted_image_embedding
    dump("prior", hidden_states=x, timestep=t, proj_embedding=text.text_embeds, encoder_hidden_states=text.last_hidden_state,
         attention_mask=encoded.attention_mask, predicted_image_embedding=prior(mask), predicted_no_mask=prior(None),
         post_processed=pipeline.prior.post_process_latents(x))

    pair = lambda tensor: torch.cat([tensor[2:], tensor[:1]])  # [unconditional, conditional]
    embeds, states, mask = pair(text.text_embeds), pair(text.last_hidden_state), pair(mask)
    project = lambda embedding, guided: pipeline.text_proj(image_embeddings=embedding, prompt_embeds=embeds, text_encoder_hidden_states=states,
                                                           do_classifier_free_guidance=guided)
    one, two = normal(1, d), normal(2, d)
    (hidden_cfg, time_cfg), (hidden, time) = project(one, True), project(two, False)
    dump("text_proj", prompt_embeds=embeds, text_encoder_hidden_states=states, image_embeddings_cfg=one, out_hidden_cfg=hidden_cfg,
         out_time_cfg=time_cfg, image_embeddings=two, out_hidden=hidden, out_time=time)

    mask = torch.nn.functional.pad(mask, (sizes["extra_tokens"], 0), value=True)
    x, t = normal(2, 3, sizes["decoder_size"], sizes["decoder_size"]), torch.tensor([700, 12])
    decode = lambda mask: pipeline.decoder(x, t, encoder_hidden_states=hidden_cfg, class_labels=time_cfg, attention_mask=mask).sample
    dump("decoder", sample=x, timestep=t, encoder_hidden_states=hidden_cfg, class_labels=time_cfg, attention_mask=mask.int(), out=decode(mask),
         out_no_mask=decode(None))
    x, t = normal(2, 6, sizes["super_size"], sizes["super_size"]), torch.tensor([999, 166])
    dump("super_res", sample=x, timestep=t, out_first=pipeline.super_res_first(x, t).sample, out_last=pipeline.super_res_last(x, t).sample)
    low = normal(1, 3, sizes["decoder_size"], sizes["decoder_size"]).clamp(-1, 1)
    dump("upscale", low=low, bicubic_antialias=torch.nn.functional.interpolate(low, size=[sizes["super_size"]] * 2, mode="bicubic",
                                                                              align_corners=False, antialias=True))

    original = scheduling.randn_tensor
    for i, (name, shape, outputs) in enumerate((("prior", (2, d), 1), ("decoder", (1, 3, 8, 8), 2), ("super_res", (1, 3, 8, 8), 1))):
        scheduler = getattr(pipeline, f"{name}_scheduler")
        scheduler.set_timesteps(5)
        scheduling.randn_tensor = noise = Noise(50 + i)
        samples, model_outputs, clean = [normal(*shape)], [], []
        for k, t in enumerate(scheduler.timesteps):
            model_outputs.append(normal(shape[0], shape[1] * outputs, *shape[2:]))
            previous = scheduler.timesteps[k + 1] if k + 1 < 5 else None
            step = scheduler.step(model_outputs[-1], t, samples[-1], prev_timestep=previous)
            samples.append(step.prev_sample)
            clean.append(step.pred_original_sample)
        tables = dict(betas=scheduler.betas, alphas_cumprod=scheduler.alphas_cumprod) if i == 0 else {}
        dump(f"scheduler_{name}", timesteps=scheduler.timesteps, model_outputs=torch.stack(model_outputs), noise=torch.stack(noise.log),
             samples=torch.stack(samples), pred_original=torch.stack(clean), **tables)
    scheduling.randn_tensor = original
    timesteps = {}
    for n in (2, 5, 7, 25, 50, 64, 250, 1000):
        pipeline.prior_scheduler.set_timesteps(n)
        timesteps[f"n{n}"] = pipeline.prior_scheduler.timesteps
    dump("timesteps", **timesteps)

    recorded = {}
    for name, p, source in (("e2e_text2img", pipeline, PROMPTS[0]), ("e2e_variation", variation, image)):
        noise, latents, embedding, result = generate(p, sizes, source, seed)
        inputs = dict(input_ids=encoded.input_ids[:1]) if p is pipeline else dict(image_hwc_u8=torch.from_numpy(np.array(image)))
        dump(name, **inputs, image_embeddings=embedding, **numbered("noise", noise), **numbered("latent", latents), image=result)
        recorded[name] = (p, source, latents, result)
    return recorded


def check_conditioning(sizes, recorded, seed):
    """How far 32-bit floats take the recordings from 64-bit ones: a step at t = 999 divides by 5e-5, so a pixel that is not
    clipped there magnifies every rounding, and a recording with such a pixel is of no use. Another seed has none."""

    def widen(module, args, output):  # transformers' causal mask does not fit into 64 bits
        output.text_embeds, output.last_hidden_state = output.text_embeds.double(), output.last_hidden_state.double()

    for name, (pipeline, source, latents, image) in recorded.items():
        for part in ("text_proj", "decoder", "super_res_first", "super_res_last", "prior", "image_encoder"):
            if hasattr(pipeline, part):
                getattr(pipeline, part).double()
        hook = pipeline.text_encoder.register_forward_hook(widen)
        _, exact, _, exact_image = generate(pipeline, sizes, source, seed)
        latent = max((a - b).abs().max().item() for a, b in zip(latents, exact))
        hook.remove()
        print(f"{name}: float32 against float64: latents {latent:.1e}, image {(image - exact_image).abs().max().item():.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sizes", choices=SIZES, default="square")
    parser.add_argument("--pipeline", type=Path, metavar="DIR", help="a pipeline to be opened instead")
    parser.add_argument("--seed", type=int, default=99, help="of the noise of the two generations")
    args = parser.parse_args()
    args.out.mkdir(parents=True)
    if args.pipeline:
        pipeline, variation, sizes = open_pipeline(args.out, args.pipeline)
    else:
        sizes = SIZES[args.sizes]
        pipeline, variation = build(args.out, sizes)
    recorded = record(args.out, sizes, pipeline, variation, args.seed)
    versions = {m.__name__: m.__version__ for m in (diffusers, transformers, torch)}
    manifest = dict(prompts=PROMPTS, steps=sizes["steps"], versions=versions)
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    check_conditioning(sizes, recorded, args.seed)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
