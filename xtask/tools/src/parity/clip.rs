//! CLIP's towers, tokenizer and image preprocessing.

use anyhow::{Context, Result};
use burn::prelude::*;
use dalle2::base::TextEncoder;
use dalle2::base::image::to_tensor;
use dalle2::base::nn::{Transformer, causal_mask, conv2d, layer_norm};
use dalle2::base::text::{ClipTokenizer, PadWith};

use super::{Comparison, Fixture};

impl Comparison {
    /// Returns a caption's token ids, padded for the text encoder, and the number of text tokens.
    pub fn token_ids(&self, caption: &str) -> Result<(Vec<i64>, usize)> {
        let tokenizer = ClipTokenizer::from_dir(self.dir.join("pipeline/tokenizer"))?;
        let length = self.parts.text_encoder.context_length();
        let (mut ids, text) = tokenizer.encode_padded(caption, length, PadWith::EndOfText)?;
        ids[text..].fill(self.parts.text_encoder.config().pad_token);
        Ok((ids.into_iter().map(i64::from).collect(), text))
    }

    pub fn text_encoder(&mut self, file: &Fixture) -> Result<()> {
        let prompts = self.manifest.prompts.clone();
        let (mut ids, mut items) = (Vec::new(), Vec::new());
        for prompt in &prompts {
            let (row, text) = self.token_ids(prompt)?;
            items.push((row.iter().map(|id| *id as u32).collect(), text));
            ids.extend(row);
        }
        self.exact("text_encoder/input_ids".into(), &ids, &file.integers("input_ids")?)?;

        let captions: Vec<&str> = prompts.iter().map(String::as_str).collect();
        let encoded = self.parts.text_encoder.encode(&captions)?;
        let mask: Vec<i64> = encoded.mask.keep().into_data().iter::<bool>().map(i64::from).collect();
        self.exact("text_encoder/attention_mask".into(), &mask, &file.integers("attention_mask")?)?;

        let (config, model) = (self.parts.text_encoder.config(), self.parts.text_encoder.model().clone());
        let rows = config.batch(&items, &self.device)?.rows;
        let length = rows.dims()[1];
        let embedded = model.token_embedding.forward(rows)
            + model.position_embedding.weight.val().narrow(0, 0, length).unsqueeze();
        let mask = causal_mask(length, &self.device);
        for (name, layers) in hidden_states(file)? {
            let state = run_layers(&model.transformer, embedded.clone(), layers, Some(mask.clone()))?;
            self.check(file, &name, state)?;
        }
        self.check(file, "last_hidden_state", encoded.tokens)?;
        self.check(file, "text_embeds", encoded.pooled)
    }

    pub fn feature_extractor(&mut self, file: &Fixture) -> Result<()> {
        let image = to_tensor(&[file.image("image_hwc_u8")?], &self.device)?;
        let processor = self.parts.image_encoder.processor().context("the image encoder lacks a processor")?;
        let pixels = processor.forward(image)?;
        self.check(file, "pixel_values", pixels)
    }

    pub fn image_encoder(&mut self, file: &Fixture) -> Result<()> {
        let pixels = file.tensor::<4>("pixel_values", &self.device)?;
        let model = self.parts.image_encoder.model();
        let patches = conv2d(&model.patch_embedding, pixels.clone()).flatten::<3>(2, 3).swap_dims(1, 2);
        let [b, _, w] = patches.dims();
        let class = model.class_embedding.val().reshape([1, 1, w]).expand([b, 1, w]);
        let embedded = Tensor::cat(vec![class, patches], 1) + model.position_embedding.weight.val().unsqueeze::<3>();
        let embedded = layer_norm(&model.pre_norm, embedded);
        let mut states = Vec::new();
        for (name, layers) in hidden_states(file)? {
            states.push((name, run_layers(&model.transformer, embedded.clone(), layers, None)?));
        }
        let (last, embeds) = (model.encode_patches(pixels.clone()), model.forward(pixels));
        for (name, state) in states {
            self.check(file, &name, state)?;
        }
        self.check(file, "last_hidden_state", last)?;
        self.check(file, "image_embeds", embeds)
    }
}

/// Returns the names of the recorded hidden states and the number of blocks before each.
fn hidden_states(file: &Fixture) -> Result<Vec<(String, usize)>> {
    let names = file.names("hidden_state_")?;
    names.into_iter().map(|name| Ok((name.clone(), name["hidden_state_".len()..].parse()?))).collect()
}

fn run_layers(
    transformer: &Transformer,
    x: Tensor<3>,
    layers: usize,
    mask: Option<Tensor<4, Bool>>,
) -> Result<Tensor<3>> {
    let layers = transformer.layers.get(..layers).context("a recorded hidden state comes after the last block")?;
    Ok(layers.iter().fold(x, |x, layer| layer.forward(x, mask.clone())))
}
