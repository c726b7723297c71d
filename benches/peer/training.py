"""Times the training steps of dalle2-train/benches/training in PyTorch, and prints the results as JSON in the same form.

    cargo bench --bench training -- --export DIR
    python benches/peer/training.py DIR decoder clip

DIR holds the weights and the batches of the other side, so both take the very same steps: the losses of the first ones
are printed for comparison. Every parameter is read from there, and the numbers of parameters are equal.
"""

import argparse
import json
import math
import statistics
import time
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
import transformers
from diffusers import UNet2DConditionModel, UnCLIPScheduler
from diffusers.pipelines.unclip.text_proj import UnCLIPTextProjModel
from safetensors.torch import load_file

WARM_UP, MEASURE, LEAST = 4, 8.0, 5
VLB_WEIGHT = 0.001


def decoder(root, options):
    """diffusers' U-Net and projections with the hybrid loss of Nichol and Dhariwal 2021, section 3.1."""
    unet = UNet2DConditionModel.from_pretrained(root / "decoder", low_cpu_mem_usage=False)
    text_proj = UnCLIPTextProjModel.from_pretrained(root / "text_proj", low_cpu_mem_usage=False)
    if options.channels_last:
        unet = unet.to(memory_format=torch.channels_last)
    run = torch.compile(unet) if options.compile else unet
    scheduler = UnCLIPScheduler.from_pretrained(root / "decoder_scheduler")
    batch = load_file(root / "decoder_batch.safetensors")
    t, drop, mask = batch["t"].long(), batch["drop_image"].bool(), batch["mask"].bool()
    mask = F.pad(mask, (text_proj.config.clip_extra_context_tokens, 0), value=True)
    steps = scheduler.config.num_train_timesteps
    x_start, noise = batch["x_start"], batch["noise"]
    terms = posterior(scheduler, t)

    def loss():
        null = text_proj.learned_classifier_free_guidance_embeddings.expand_as(batch["embedding"])
        context, added = text_proj(
            image_embeddings=torch.where(drop[:, None], null, batch["embedding"]),
            prompt_embeds=batch["pooled"],
            text_encoder_hidden_states=batch["tokens"],
            do_classifier_free_guidance=False,
        )
        x_t = scheduler.add_noise(x_start, noise, t)
        out = run(x_t, t, encoder_hidden_states=context, class_labels=added, attention_mask=mask).sample
        eps, variance = out.chunk(2, dim=1)
        return F.mse_loss(eps, noise) + VLB_WEIGHT * steps * bound(terms, x_start, x_t, eps.detach(), variance).mean()

    return [unet, text_proj], loss, len(t)


def posterior(scheduler, t):
    """The numbers of q(x_{t-1} | x_t, x_0) at each item's timestep, in 64 bits until they are rounded once."""
    betas = scheduler.betas.double()
    kept = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), kept[:-1]])
    variance = betas * (1 - before) / (1 - kept)
    column = lambda values: values[t].float()[:, None, None, None]
    return {
        "kept": column(kept),
        "of_x_start": column(betas * before.sqrt() / (1 - kept)),
        "of_x_t": column((1 - before) * (1 - betas).sqrt() / (1 - kept)),
        "least": column(torch.cat([variance[1:2], variance[1:]]).log()),
        "most": column(betas.log()),
        "last": (t == 0).float(),
    }


def bound(terms, x_start, x_t, eps, variance):
    """The variational bound of each item in bits per component; its gradient reaches the variance only."""
    predicted = ((x_t - (1 - terms["kept"]).sqrt() * eps) / terms["kept"].sqrt()).clamp(-1, 1)
    true_mean = terms["of_x_start"] * x_start + terms["of_x_t"] * x_t
    mean = terms["of_x_start"] * predicted + terms["of_x_t"] * x_t
    least, log_variance = terms["least"], (variance + 1) / 2 * terms["most"] + (1 - variance) / 2 * terms["least"]
    distance = (true_mean - mean) ** 2 * torch.exp(-log_variance)
    divergence = 0.5 * (log_variance - least + torch.exp(least - log_variance) + distance - 1)
    cdf = lambda x: 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    precision, centered = torch.exp(-0.5 * log_variance), x_start - mean
    upper, lower = cdf((centered + 1 / 255) * precision), cdf((centered - 1 / 255) * precision)
    floor = lambda x: x.clamp(min=1e-12).log()
    inner = torch.where(x_start < -0.999, floor(upper), floor(upper - lower))
    likelihood = -torch.where(x_start > 0.999, floor(1 - lower), inner)
    mean_of = lambda x: x.flatten(1).mean(1)
    return torch.lerp(mean_of(divergence), mean_of(likelihood), terms["last"]) / math.log(2)


def clip(root, options):
    """transformers' CLIPModel with its contrastive loss."""
    model = transformers.CLIPModel.from_pretrained(root / "clip").train()
    if options.channels_last:
        model = model.to(memory_format=torch.channels_last)
    run = torch.compile(model) if options.compile else model
    batch = load_file(root / "clip_batch.safetensors")
    pixels, ids = batch["pixels"], batch["ids"].long()
    loss = lambda: run(input_ids=ids, pixel_values=pixels, return_loss=True).loss
    return [model], loss, len(ids)


def optimizer(modules):
    """AdamW in its quickest form, without decay on vectors and embedding tables, as on the other side."""
    tables = {p for m in modules for part in m.modules() if isinstance(part, torch.nn.Embedding) for p in part.parameters()}
    parameters = [p for m in modules for p in m.parameters()]
    decayed = [p for p in parameters if p.dim() >= 2 and p not in tables]
    others = [p for p in parameters if p.dim() < 2 or p in tables]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, fused=True)


def measure(part, root, options):
    modules, loss_of, batch = part(root, options)
    modules = [module.train() for module in modules]
    adam = optimizer(modules)
    losses, seconds = [], []
    while len(seconds) < LEAST or sum(seconds) < MEASURE:
        start = time.perf_counter()
        loss = loss_of()
        loss.backward()
        adam.step()
        adam.zero_grad()
        value = loss.item()
        elapsed = time.perf_counter() - start
        if len(losses) < WARM_UP:
            losses.append(value)
        else:
            seconds.append(elapsed)
    parameters = sum(p.numel() for module in modules for p in module.parameters())
    return {"seconds": statistics.median(seconds), "batch": batch, "parameters": parameters, "losses": losses}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("root", type=Path)
    parser.add_argument("parts", nargs="+", choices=["decoder", "clip"])
    parser.add_argument("--channels-last", action="store_true", help="activations as PyTorch advises for CPUs")
    parser.add_argument("--compile", action="store_true", help="torch.compile, which needs a C++ compiler")
    options = parser.parse_args()
    parts = {part: measure(globals()[part], options.root, options) for part in options.parts}
    versions = {"PyTorch": torch.__version__, "diffusers": diffusers.__version__, "transformers": transformers.__version__}
    print(json.dumps({"versions": versions, "threads": torch.get_num_threads(), "parts": parts}))


if __name__ == "__main__":
    main()
