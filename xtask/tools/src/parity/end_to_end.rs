//! Both recorded generations: each step from its recorded latent, and all steps from the noise.

use anyhow::{Context, Result};
use burn::prelude::*;
use dalle2::base::diffusion::{RecordedNoise, SamplerOptions, SamplingPlan, guide_halves, sample};
use dalle2::base::image::{from_tensor, resize_bicubic, to_tensor};
use dalle2::base::{
    Captions, Decoder, DiffusionOptions, ImageEncoder, Prior, PriorOptions, StepEvent, TextCondition, TextEncoder,
    Upsampler, UpsamplerOptions,
};

use super::schedules::{push, split};
use super::{Comparison, Fixture};

/// Guidance scale of the recorded generations, the reference pipelines' default.
const PRIOR_GUIDANCE: f64 = 4.0;
const DECODER_GUIDANCE: f64 = 8.0;

/// The recorded noise and latents of one stage; the first noise is its initial sample.
struct Stage<const D: usize> {
    name: String,
    noises: Vec<Tensor<D>>,
    latents: Vec<Tensor<D>>,
}

/// Reads the arrays of one stage after another.
struct Reader<'a> {
    file: &'a Fixture,
    device: Device,
    next: usize,
}

impl Reader<'_> {
    /// Reads the arrays of a stage with `steps` steps: one noise and one latent per step.
    fn stage<const D: usize>(&mut self, name: &str, steps: usize) -> Result<Stage<D>> {
        let range = self.next..self.next + steps;
        self.next += steps;
        let read = |kind: &str| -> Result<Vec<Tensor<D>>> {
            range.clone().map(|k| self.file.tensor(&format!("{kind}_{k:02}"), &self.device)).collect()
        };
        let (noises, latents) = (read("noise")?, read("latent")?);
        Ok(Stage { name: format!("{}/{name}", self.file.name()), noises, latents })
    }
}

impl<const D: usize> Stage<D> {
    fn noise(&self) -> Result<RecordedNoise> {
        let mut source = RecordedNoise::new();
        self.noises.iter().try_for_each(|noise| push(&mut source, noise.clone()))?;
        Ok(source)
    }
}

impl Comparison {
    pub fn text_to_image(&mut self, file: &Fixture) -> Result<()> {
        let prompt = self.manifest.prompts.first().context("the manifest names no prompt")?.clone();
        let (ids, _) = self.token_ids(&prompt)?;
        self.exact("e2e_text2img/input_ids".into(), &ids, &file.integers("input_ids")?)?;
        let text = self.parts.text_encoder.encode(&[&prompt])?;
        let null = self.parts.text_encoder.encode(&[""])?;

        let mut reader = Reader { file, device: self.device.clone(), next: 0 };
        let stage = reader.stage::<2>("prior", self.manifest.steps.prior)?;
        self.prior_steps(&stage, &text, &null)?;
        let (steps, guidance) = (Some(self.manifest.steps.prior), Some(PRIOR_GUIDANCE));
        let options = PriorOptions { steps, guidance, ..Default::default() };
        let captions = Captions { text: &text, null: &null };
        let embedding = self.parts.prior.sample(captions, &options, &mut stage.noise()?, &mut keep_going)?;
        self.check(file, "image_embeddings", embedding.clone())?;
        self.images(file, &mut reader, embedding, &text, &null)
    }

    pub fn variation(&mut self, file: &Fixture) -> Result<()> {
        let image = to_tensor(&[file.image("image_hwc_u8")?], &self.device)?;
        let embedding = self.parts.image_encoder.encode(image)?;
        self.check(file, "image_embeddings", embedding.clone())?;
        let null = self.parts.text_encoder.encode(&[""])?;
        let mut reader = Reader { file, device: self.device.clone(), next: 0 };
        self.images(file, &mut reader, embedding, &null, &null)
    }

    /// Runs decoder and super-resolution from an image embedding.
    fn images(
        &mut self,
        file: &Fixture,
        reader: &mut Reader<'_>,
        embedding: Tensor<2>,
        text: &TextCondition,
        null: &TextCondition,
    ) -> Result<()> {
        let (steps, sr_steps) = (self.manifest.steps.decoder, self.manifest.steps.sr);
        let recorded = file.tensor::<2>("image_embeddings", &self.device)?;
        let stage = reader.stage::<4>("decoder", steps)?;
        self.decoder_steps(&stage, recorded, text, null)?;
        let options = DiffusionOptions { steps: Some(steps), guidance: Some(DECODER_GUIDANCE), ..Default::default() };
        let (captions, noise) = (Captions { text, null }, &mut stage.noise()?);
        let low = self.parts.decoder.sample(&embedding, captions, None, &options, noise, &mut keep_going)?;
        let recorded_low = stage.latents.last().context("the decoder has no steps")?.clone().clamp(-1.0, 1.0);

        let stage = reader.stage::<4>("super_res", sr_steps)?;
        self.super_res_steps(&stage, recorded_low)?;
        let noise = &mut stage.noise()?;
        let options = UpsamplerOptions { steps: Some(sr_steps), ..Default::default() };
        let high = self.parts.upsampler.sample(&low, None, &options, noise, &mut keep_going)?;
        // [B, 3, H, W] in [-1, 1] -> [B, H, W, 3] in [0, 1]
        self.check(file, "image", high.clone().permute([0, 2, 3, 1]) * 0.5 + 0.5)?;
        self.pixels(file, high)
    }

    /// Compares the 8-bit image; differences up to rounding count as 0.
    fn pixels(&mut self, file: &Fixture, high: Tensor<4>) -> Result<()> {
        let (_, expected) = file.floats("image")?;
        let images = from_tensor(high)?;
        let bytes = images.iter().flat_map(|image| image.as_raw().iter().copied());
        let beyond: Vec<f64> = bytes
            .zip(&expected)
            .map(|(byte, expected)| ((f64::from(byte) - f64::from(*expected) * 255.0).abs() - 0.5).max(0.0) / 255.0)
            .collect();
        let zeros = vec![0.0; beyond.len()];
        self.values(format!("{}/8-bit image beyond rounding", file.name()), &beyond, &zeros, self.tolerance);
        Ok(())
    }

    fn prior_steps(&mut self, stage: &Stage<2>, text: &TextCondition, null: &TextCondition) -> Result<()> {
        let config = self.parts.prior.config().clone();
        let network = self.parts.prior.network()?;
        let prefix = network.prefix(&null.clone().cat(text.clone()));
        let plan = SamplingPlan::new(&config.diffusion.noise_schedule()?, self.manifest.steps.prior)?;
        self.steps(stage, &plan, &config.sampler_options(None), |x_t, t| {
            guide_halves(network.forward_from(&prefix, x_t.repeat_dim(0, 2), t, None), PRIOR_GUIDANCE)
        })
    }

    fn decoder_steps(
        &mut self,
        stage: &Stage<4>,
        embedding: Tensor<2>,
        text: &TextCondition,
        null: &TextCondition,
    ) -> Result<()> {
        let config = self.parts.decoder.config().diffusion.clone();
        let network = self.parts.decoder.network()?;
        let embeddings = Tensor::cat(vec![network.conditioning.null(1), network.conditioning.scale(embedding)], 0);
        let condition = network.conditioning.forward(embeddings, &null.clone().cat(text.clone()));
        let context = network.unet.context(condition.tokens, &condition.mask);
        let plan = SamplingPlan::new(&config.noise_schedule()?, self.manifest.steps.decoder)?;
        let device = self.device.clone();
        self.steps(stage, &plan, &config.sampler_options(&config.defaults()), |x_t, t| {
            let emb = network.unet.time_embedding(&[t], &device) + condition.time.clone();
            let out = network.unet.forward(x_t.repeat_dim(0, 2), emb, Some(&context));
            let guided = guide_halves(out.clone().narrow(1, 0, 3), DECODER_GUIDANCE);
            match out.dims()[1] - 3 {
                0 => guided,
                variance => Tensor::cat(vec![guided, out.narrow(0, 1, 1).narrow(1, 3, variance)], 1),
            }
        })
    }

    fn super_res_steps(&mut self, stage: &Stage<4>, low: Tensor<4>) -> Result<()> {
        let config = self.parts.upsampler.config().clone();
        let networks = self.parts.upsampler.networks()?;
        let size = config.output_size();
        let low = resize_bicubic(low, [size, size]);
        let plan = SamplingPlan::new(&config.diffusion.noise_schedule()?, self.manifest.steps.sr)?;
        let last_t = plan.timesteps().last().copied();
        let device = self.device.clone();
        self.steps(stage, &plan, &config.diffusion.sampler_options(&config.diffusion.defaults()), |x_t, t| {
            let unet = networks.last.as_ref().filter(|_| Some(t) == last_t).unwrap_or(&networks.first);
            unet.forward(Tensor::cat(vec![x_t, low.clone()], 1), unet.time_embedding(&[t], &device), None)
        })
    }

    /// Compares each recorded latent with one step from the latent before it.
    fn steps<const D: usize>(
        &mut self,
        stage: &Stage<D>,
        plan: &SamplingPlan,
        options: &SamplerOptions,
        network: impl Fn(Tensor<D>, usize) -> Tensor<D>,
    ) -> Result<()> {
        let mut latents = Vec::new();
        for k in 0..plan.num_steps() {
            let from = if k == 0 { &stage.noises[0] } else { &stage.latents[k - 1] };
            let mut noise = RecordedNoise::new();
            if let Some(recorded) = stage.noises.get(k + 1) {
                push(&mut noise, recorded.clone())?;
            }
            let mut denoise = |x_t: Tensor<D>, t: usize| Ok(split(network(x_t, t), options.variance));
            let mut on_step = |_: usize, _: usize, _: &Tensor<D>| Ok(());
            let part = plan.part(k..k + 1)?;
            latents.push(sample(&part, options, from.clone(), &mut denoise, &mut noise, &mut on_step)?);
        }
        self.row(format!("{}/steps", stage.name), Tensor::cat(latents, 0), Tensor::cat(stage.latents.clone(), 0))
    }
}

fn keep_going(_: StepEvent<'_>) -> dalle2::Result<()> {
    Ok(())
}
