//! A pipeline with its own prior: the caption's text embedding in place of a predicted image embedding.
//!
//! ```text
//! cargo run --release --example custom_prior -- "red apple"
//! ```
#![allow(clippy::print_stdout, reason = "a program for people at a terminal")]

use dalle2::base::image::save_png;
use dalle2::{Captions, Component, Device, NoiseSource, Pipeline, Prior, PriorOptions, Result, StepHook, Tensor};

/// The simplest prior. A better one predicts the image embedding from `captions.text` and `noise`.
#[derive(Debug)]
struct TextEmbedding {
    /// Of embeddings and tokens, and the number of tokens.
    widths: [usize; 3],
}

impl Component for TextEmbedding {
    fn class_name(&self) -> &str {
        "TextEmbedding"
    }
}

impl Prior for TextEmbedding {
    fn sample(
        &self,
        captions: Captions<'_>,
        _options: &PriorOptions,
        _noise: &mut dyn NoiseSource,
        _hook: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        Ok(captions.text.pooled.clone())
    }

    fn embed_dim(&self) -> usize {
        self.widths[0]
    }

    fn token_width(&self) -> usize {
        self.widths[1]
    }

    fn context_length(&self) -> usize {
        self.widths[2]
    }
}

fn main() -> anyhow::Result<()> {
    let caption = std::env::args().nth(1).unwrap_or_else(|| "red apple".to_owned());
    let pipeline = Pipeline::from_pretrained("models/emoji", &Device::default())?;
    let text = pipeline.text_encoder();
    let prior = TextEmbedding { widths: [text.embed_dim(), text.token_width(), text.context_length()] };
    let pipeline = pipeline.to_builder().prior(prior).build()?;

    let generation = pipeline.generate(caption.as_str())?;
    save_png(&generation.images[0], "out/custom-prior.png")?;
    println!("out/custom-prior.png");
    Ok(())
}
