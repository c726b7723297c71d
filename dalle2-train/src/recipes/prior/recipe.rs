//! Training of either prior.

use std::sync::Arc;

use dalle2_core::diffusion::LossWeight;
use dalle2_core::{Components, ConfigError, EmbeddingScale, Error, PriorOptions, Result};
use dalle2_prior::train::{AutoregressiveTask, PriorTask};
use dalle2_prior::{
    AutoregressivePriorConfig, DiffusionPriorConfig, EmbeddingQuantizer, QuantizerOptions, TrainingCost,
};
use serde::{Deserialize, Serialize};

use super::super::args::{Outcome, Preset, RecipeArgs};
use super::super::config::{NoOptions, PartOptions, RunConfig};
use super::super::data::{TrainData, spread_items};
use super::super::frozen::{ClipSizes, FrozenClip, encoder_fingerprint};
use super::super::run::{Inputs, run};
use super::super::validation::Validation;
use super::hooks::{PriorHooks, ReferencePairs};
use super::presets;
use super::source::{AutoregressiveSource, PairSource, PriorSource};
use crate::data::{DataSplit, EmbeddingSet, caption_class, held_out_keys};
use crate::{TrainConfig, materialize};

/// Captions of a validation, at most.
const VALIDATION_ITEMS: usize = 128;
/// Pairs to which principal components and buckets are fitted without an embedded set.
const QUANTIZER_PAIRS: usize = 4096;

/// The two kinds of prior.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[cfg_attr(feature = "cli", derive(clap::ValueEnum))]
pub enum PriorKind {
    /// Denoises the embedding.
    #[default]
    Diffusion,
    /// Samples the embedding's principal components one by one.
    Autoregressive,
}

impl PriorKind {
    /// Returns the name, as on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Diffusion => "diffusion",
            Self::Autoregressive => "autoregressive",
        }
    }
}

/// Training options of the diffusion prior.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiffusionPriorOptions {
    /// Weights of the errors at different timesteps.
    pub loss_weight: LossWeight,
}

impl PartOptions for DiffusionPriorOptions {
    fn check(&self) -> Result<(), ConfigError> {
        self.loss_weight.validate()
    }
}

/// Pairs that a prior trains from.
#[derive(Clone)]
pub enum PriorData {
    /// Captioned images, which CLIP embeds batch by batch.
    Images(Arc<dyn TrainData>),
    /// Embedded pairs; CLIP is not loaded.
    Embedded(Arc<EmbeddingSet>),
}

/// Trains a prior and installs it.
#[derive(Clone)]
pub struct Recipe {
    /// Arguments of all recipes.
    pub args: RecipeArgs,
    /// The kind of prior.
    pub kind: PriorKind,
    /// Diffusion: whether the network also reads its own last estimate.
    pub self_conditioning: bool,
    /// Diffusion: weights errors by min(signal-to-noise ratio, γ).
    pub min_snr: Option<f64>,
    /// Autoregressive: principal components; the preset's number if `None`.
    pub components: Option<Components>,
    /// Data of the validation.
    pub validation: Validation<PriorData>,
}

/// Inputs of a run.
struct Opened {
    pairs: PairSource,
    reference: ReferencePairs,
}

impl Recipe {
    /// Creates the recipe for the diffusion prior.
    pub fn new(args: RecipeArgs) -> Self {
        Self {
            args,
            kind: PriorKind::Diffusion,
            self_conditioning: false,
            min_snr: None,
            components: None,
            validation: Validation::Training,
        }
    }

    /// Trains on `data`, or describes the run. For [`PriorData::Images`] the recipe [`clip`](super::super::clip) must have
    /// been run with the same output directory.
    ///
    /// # Errors
    /// If the configuration is not valid, CLIP is missing, the data cannot be read, or as
    /// [`Trainer::run`](crate::Trainer::run).
    pub fn run(&self, data: &PriorData) -> Result<Outcome> {
        let train = presets::train(self.args.preset, self.kind);
        let (opened, sizes) = self.open(data)?;
        match self.kind {
            PriorKind::Diffusion => self.run_diffusion(train, opened, sizes),
            PriorKind::Autoregressive => self.run_autoregressive(train, opened, sizes),
        }
    }

    fn run_diffusion(&self, train: TrainConfig, opened: Option<Opened>, sizes: ClipSizes) -> Result<Outcome> {
        if self.components.is_some() {
            let expected = "principal components belong to the autoregressive prior";
            return Err(ConfigError::new("kind", self.kind.name(), expected).into());
        }
        let config = self.args.resolve(self.diffusion_preset(train, opened.as_ref(), sizes)?)?;
        let Some(opened) = opened.filter(|_| !self.args.dry_run) else { return self.args.describe(&config) };
        let RunConfig { model, options, train } = &config;
        let mut weighted = model.clone();
        weighted.diffusion.loss_weight = Some(options.loss_weight).filter(|weight| *weight != LossWeight::Uniform);
        let task = PriorTask::new(&weighted, &self.args.training_device()?)?;
        materialize(&task, &self.args.main_device()?, train.seed);
        let source = PriorSource::of_pairs(opened.pairs.with_seed(train.seed)?, model, train.batch_size);
        let hooks = self.hooks(opened.reference, model.training_cost(), train.batch_size);
        run(&self.args, "prior", &config, task, Inputs { source: Box::new(source), hooks: Box::new(hooks) })
    }

    fn diffusion_preset(
        &self,
        train: TrainConfig,
        opened: Option<&Opened>,
        sizes: ClipSizes,
    ) -> Result<RunConfig<DiffusionPriorConfig, DiffusionPriorOptions>> {
        let scale = match opened {
            Some(opened) if self.args.preset == Preset::Portable => {
                let (image, _) = opened.pairs.sample(VALIDATION_ITEMS, &self.args.main_device()?)?;
                EmbeddingScale::measure(image)?
            }
            _ => EmbeddingScale::None,
        };
        let mut model = presets::diffusion(self.args.preset, sizes, scale);
        model.self_conditioning = self.self_conditioning;
        let loss_weight = self.min_snr.map_or(LossWeight::Uniform, |gamma| LossWeight::MinSnr { gamma });
        Ok(RunConfig { model, options: DiffusionPriorOptions { loss_weight }, train })
    }

    fn run_autoregressive(&self, train: TrainConfig, opened: Option<Opened>, sizes: ClipSizes) -> Result<Outcome> {
        if self.self_conditioning || self.min_snr.is_some() {
            let expected = "self-conditioning and min-SNR belong to the diffusion prior";
            return Err(ConfigError::new("kind", self.kind.name(), expected).into());
        }
        let mut model = presets::autoregressive(self.args.preset, sizes)?;
        if let Some(Components::Fixed(count)) = self.components {
            model.components = count;
        }
        let mut config: RunConfig<AutoregressivePriorConfig> =
            self.args.resolve(RunConfig { model, options: NoOptions {}, train })?;
        let Some(opened) = opened.filter(|_| !self.args.dry_run) else { return self.args.describe(&config) };
        let (batch_size, seed) = (config.train.batch_size, config.train.seed);
        let pairs = opened.pairs.with_seed(seed)?;
        let quantizer = self.quantizer(&pairs, &config.model)?;
        config.model.components = quantizer.num_components();
        let task = AutoregressiveTask::new(&config.model, quantizer.clone(), &self.args.training_device()?)?;
        materialize(&task, &self.args.main_device()?, seed);
        let source = AutoregressiveSource::new(pairs, quantizer, batch_size);
        let hooks = self.hooks(opened.reference, config.model.training_cost(), batch_size);
        let inputs = Inputs { source: Box::new(source), hooks: Box::new(hooks) };
        run(&self.args, "autoregressive_prior", &config, task, inputs)
    }

    /// Fits principal components and buckets to the pairs.
    fn quantizer(&self, pairs: &PairSource, model: &AutoregressivePriorConfig) -> Result<EmbeddingQuantizer> {
        let components = match self.components {
            Some(explained @ Components::Explained(_)) => explained,
            _ => Components::Fixed(model.components),
        };
        let (image, text) = pairs.sample(QUANTIZER_PAIRS, &self.args.main_device()?)?;
        let options = QuantizerOptions { components, ..QuantizerOptions::of(model) };
        let quantizer = EmbeddingQuantizer::fit(image.clone(), text, &options)?;
        let lost = 100.0 * quantizer.reconstruction_error(image)?;
        let (count, width) = (quantizer.num_components(), model.embed_dim);
        tracing::info!("{count} of {width} principal components lose {lost:.2} % of the variance");
        Ok(quantizer)
    }

    fn hooks(&self, reference: ReferencePairs, cost: TrainingCost, batch_size: usize) -> PriorHooks {
        let (kind, parameters) = (self.kind.name(), cost.parameters);
        tracing::info!("{kind} prior with {parameters} parameters, {} tokens per pair", cost.tokens);
        let hooks = PriorHooks::new(reference, PriorOptions::default(), cost, batch_size);
        if matches!(self.validation, Validation::Training) { hooks.on_training_data() } else { hooks }
    }

    /// Opens the training pairs and the reference pairs, and reads CLIP's sizes. A dry run without CLIP has no pairs.
    fn open(&self, data: &PriorData) -> Result<(Option<Opened>, ClipSizes)> {
        match data {
            PriorData::Embedded(set) => self.open_set(set),
            PriorData::Images(data) => self.open_images(data.clone()),
        }
    }

    fn open_set(&self, set: &Arc<EmbeddingSet>) -> Result<(Option<Opened>, ClipSizes)> {
        let info = set.info();
        let (embed_dim, token_width, context_length) = (info.embed_dim, info.token_width, info.context_length);
        let sizes = ClipSizes { embed_dim, token_width, context_length };
        check_encoders(set, &self.args.export_dir())?;
        tracing::info!("{} embedded pairs, {} shards left out", set.len(), set.problems().len());
        let all: Arc<[usize]> = (0..set.len()).collect();
        let (train, reference) = match &self.validation {
            Validation::Training => (all.clone(), self.set_reference(set, &all)?),
            Validation::Share(share) => {
                let keys: Vec<u64> = set.captions().iter().map(|caption| caption_class(caption)).collect();
                let keys_held_out = held_out_keys(&keys, *share)?;
                let (held_out, train): (Vec<usize>, Vec<usize>) =
                    all.iter().partition(|row| keys_held_out.contains(&keys[**row]));
                (train.into(), self.set_reference(set, &held_out)?)
            }
            Validation::Data(data) => (all, self.data_reference(data, None)?),
        };
        let pairs = PairSource::of_rows(set.clone(), train, 0)?;
        Ok((Some(Opened { pairs, reference }), sizes))
    }

    fn open_images(&self, data: Arc<dyn TrainData>) -> Result<(Option<Opened>, ClipSizes)> {
        let (clip, sizes) = FrozenClip::open(&self.args, &self.args.main_device()?)?;
        let Some(clip) = clip else { return Ok((None, sizes)) };
        let (train, reference) = match &self.validation {
            Validation::Training => (data.clone(), self.data_reference(&PriorData::Images(data), Some(&clip))?),
            Validation::Share(share) => {
                let DataSplit { train, held_out } = data.split(*share)?;
                (train, self.data_reference(&PriorData::Images(held_out), Some(&clip))?)
            }
            Validation::Data(held_out) => (data, self.data_reference(held_out, Some(&clip))?),
        };
        tracing::info!("{} items", train.len());
        Ok((Some(Opened { pairs: PairSource::of_data(train, clip, 0), reference }), sizes))
    }

    /// Takes at most [`VALIDATION_ITEMS`] of the rows, spread evenly.
    fn set_reference(&self, set: &EmbeddingSet, rows: &[usize]) -> Result<ReferencePairs> {
        let count = rows.len().min(VALIDATION_ITEMS);
        let rows: Vec<usize> = (0..count).map(|i| rows[i * rows.len() / count]).collect();
        Ok(ReferencePairs::of_set(set, &rows, &self.args.main_device()?))
    }

    fn data_reference(&self, data: &PriorData, clip: Option<&FrozenClip>) -> Result<ReferencePairs> {
        match (data, clip) {
            (PriorData::Embedded(set), _) => self.set_reference(set, &(0..set.len()).collect::<Vec<_>>()),
            (PriorData::Images(data), Some(clip)) => {
                ReferencePairs::of_items(&spread_items(&**data, clip.image_size(), VALIDATION_ITEMS)?, clip)
            }
            (PriorData::Images(data), None) => {
                let load = |_: &std::path::Path| FrozenClip::load(self.args.export_dir(), &self.args.main_device()?);
                let clip = self.args.trained("text_encoder", "clip", load)?;
                ReferencePairs::of_items(&spread_items(&**data, clip.image_size(), VALIDATION_ITEMS)?, &clip)
            }
        }
    }
}

/// Refuses a set that was embedded with encoders other than the pipeline's.
fn check_encoders(set: &EmbeddingSet, export: &std::path::Path) -> Result<()> {
    let Some(of_set) = &set.info().encoder_fingerprint else { return Ok(()) };
    if !export.join("text_encoder").is_dir() || !export.join("image_encoder").is_dir() {
        return Ok(());
    }
    let of_pipeline = encoder_fingerprint(export)?;
    if *of_set == of_pipeline {
        return Ok(());
    }
    Err(Error::Mismatch(format!(
        "the pairs were embedded with other encoders (fingerprint {of_set}) than those in {} ({of_pipeline}): embed the \
         data again with this model, or choose another output directory",
        export.display()
    )))
}
