//! One forward pass of each network: prior, decoder, super-resolution.

use anyhow::Result;
use burn::prelude::*;
use dalle2::base::image::resize_bicubic;
use dalle2::base::{TextCondition, TokenMask};

use super::{Comparison, Fixture};

impl Comparison {
    pub fn prior(&mut self, file: &Fixture) -> Result<()> {
        let network = self.parts.prior.network()?;
        let x_t = file.tensor::<2>("hidden_states", &self.device)?;
        let t = file.timesteps("timestep")?;
        let tokens = file.tensor::<3>("encoder_hidden_states", &self.device)?;
        let keep = file.mask("attention_mask", &self.device)?;
        let pooled = file.tensor("proj_embedding", &self.device)?;
        let text = TextCondition { pooled, tokens, mask: TokenMask::from_keep(keep) };
        let masked = network.forward(x_t.clone(), &t, &text);
        let unmasked = network.forward_unmasked(x_t.clone(), &t, &text);
        let unscaled = self.parts.prior.config().image_scale.unscale(x_t);
        self.check(file, "predicted_image_embedding", masked)?;
        self.check(file, "predicted_no_mask", unmasked)?;
        self.check(file, "post_processed", unscaled)
    }

    pub fn text_proj(&mut self, file: &Fixture) -> Result<()> {
        let conditioning = self.parts.decoder.network()?.conditioning;
        let pooled = file.tensor::<2>("prompt_embeds", &self.device)?;
        let tokens = file.tensor::<3>("text_encoder_hidden_states", &self.device)?;
        let [b, s, _] = tokens.dims();
        let mask = TokenMask::from_lengths(&vec![s; b], s, &self.device);
        let text = TextCondition { pooled, tokens, mask };
        let guided = file.tensor::<2>("image_embeddings_cfg", &self.device)?;
        let guided = Tensor::cat(vec![conditioning.null(guided.dims()[0]), guided], 0);
        for (embedding, tokens, time) in [
            (guided, "out_hidden_cfg", "out_time_cfg"),
            (file.tensor("image_embeddings", &self.device)?, "out_hidden", "out_time"),
        ] {
            let condition = conditioning.forward(conditioning.scale(embedding), &text);
            self.check(file, tokens, condition.tokens)?;
            self.check(file, time, condition.time)?;
        }
        Ok(())
    }

    pub fn decoder(&mut self, file: &Fixture) -> Result<()> {
        let unet = self.parts.decoder.network()?.unet;
        let x_t = file.tensor::<4>("sample", &self.device)?;
        let emb = unet.time_embedding(&file.timesteps("timestep")?, &self.device);
        let emb = emb + file.tensor("class_labels", &self.device)?;
        let tokens = file.tensor::<3>("encoder_hidden_states", &self.device)?;
        let keep = file.mask("attention_mask", &self.device)?;
        let all = Tensor::full(keep.dims(), true, &self.device);
        for (name, keep) in [("out", keep), ("out_no_mask", all)] {
            let context = unet.context(tokens.clone(), &TokenMask::from_keep(keep));
            self.check(file, name, unet.forward(x_t.clone(), emb.clone(), Some(&context)))?;
        }
        Ok(())
    }

    pub fn super_res(&mut self, file: &Fixture) -> Result<()> {
        let networks = self.parts.upsampler.networks()?;
        let input = file.tensor::<4>("sample", &self.device)?;
        let t = file.timesteps("timestep")?;
        for (name, unet) in [("out_first", Some(networks.first)), ("out_last", networks.last)] {
            let Some(unet) = unet else { continue };
            let out = unet.forward(input.clone(), unet.time_embedding(&t, &self.device), None);
            self.check(file, name, out)?;
        }
        Ok(())
    }

    pub fn upscale(&mut self, file: &Fixture) -> Result<()> {
        let low = file.tensor::<4>("low", &self.device)?;
        let (shape, _) = file.floats("bicubic_antialias")?;
        let enlarged = resize_bicubic(low, [shape[2], shape[3]]);
        self.check(file, "bicubic_antialias", enlarged)
    }
}
