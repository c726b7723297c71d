//! Training the real models under Burn's own loop by [`Trainer::run_supervised`], and exporting what it gave.

use burn::module::ModuleDisplay;
use burn::train::InferenceStep;
use burn::train::metric::{Adaptor, LossInput};
use dalle2::core::Component;
use dalle2::core::store::Precision;
use dalle2::core::train::Hooks;
use dalle2::decoder::{DiffusionUpsampler, UnclipDecoder};
use dalle2::prior::DiffusionPrior;

use super::*;

/// Saves the part that a model becomes.
struct Export<F>(F);

impl<M, C: Component, F: Fn(&M) -> C> Hooks<M> for Export<F> {
    fn export(&mut self, model: &M, dir: &Path) -> dalle2::Result<()> {
        (self.0)(model).save(dir, Precision::F32)
    }
}

/// Trains thirty steps in three epochs on two devices, which learn six batches again and again. Gives the model, and the
/// folder of its export.
fn learns_on_two_devices<M, S, H>(dir: &Path, model: M, source: S, hooks: &mut H) -> (M, std::path::PathBuf)
where
    M: TrainTask<Input = S::Batch> + InferenceStep<Input = S::Batch> + ModuleDisplay + std::fmt::Display + 'static,
    <M as TrainStep>::Output: LossOutput + Adaptor<LossInput>,
    <M as InferenceStep>::Output: LossOutput + Adaptor<LossInput>,
    S: BatchSource + 'static,
    H: Hooks<M>,
{
    let _alone = alone();
    materialize(&model, &device(), 3);
    let source = Arc::new(Batches(move |step, device: &Device| source.batch(step % 6, device).unwrap()));
    let before = mean_loss(&model.valid(), &*source, 0..6);
    let config = TrainConfig {
        steps: 30,
        accumulation: 2,
        learning_rate: 0.01,
        warmup: 2,
        ema_decay: None,
        checkpoint_every: 10,
        ..Default::default()
    };
    let options = RunOptions { display: DisplayMode::Quiet, ..Default::default() };
    let trainer = Trainer::new(config, dir).options(options);
    let trained = trainer.run_supervised(&[Device::flex(), Device::flex()], model, source.clone(), hooks).unwrap();
    assert!(trained.ema.is_none() && trained.report.steps == 30);
    let losses: Vec<f64> = read_metrics(dir.join("metrics.jsonl")).unwrap().iter().map(|s| s.loss.unwrap()).collect();
    assert_eq!(losses.len(), 30);
    let after = mean_loss(&trained.model, &*source, 0..6);
    assert!(after < 0.9 * before, "the loss went from {before} to {after}: {losses:?}");
    (trained.model, dir.join("export"))
}

#[test]
fn a_prior_trains_on_two_devices_and_its_export_loads() {
    let temp = tempfile::tempdir().unwrap();
    let config = prior_config();
    let task = PriorTask::new(&config, &device()).unwrap();
    let mut export = Export(|task: &PriorTask| DiffusionPrior::new(config.clone(), task.network.clone()).unwrap());
    let (model, dir) = learns_on_two_devices(temp.path(), task, prior_source(), &mut export);
    let loaded = DiffusionPrior::load(dir, &Device::flex()).unwrap();
    assert!(bits(&loaded.network().unwrap()) == bits(&model.network));
}

#[test]
fn a_decoder_trains_on_two_devices_and_its_export_loads() {
    let temp = tempfile::tempdir().unwrap();
    let config = decoder_config();
    let task = DecoderTask::new(&config, &device()).unwrap();
    let mut export = Export(|task: &DecoderTask| UnclipDecoder::new(config.clone(), task.network.clone()).unwrap());
    let (model, dir) = learns_on_two_devices(temp.path(), task, decoder_source(), &mut export);
    let loaded = UnclipDecoder::load(dir, &Device::flex()).unwrap();
    assert!(bits(&loaded.network().unwrap()) == bits(&model.network));
}

#[test]
fn an_upsampler_trains_on_two_devices_and_its_export_loads() {
    let temp = tempfile::tempdir().unwrap();
    let config = upsampler_config();
    let task = UpsamplerTask::new(&config, &device()).unwrap();
    let mut export =
        Export(|task: &UpsamplerTask| DiffusionUpsampler::new(config.clone(), task.network.clone()).unwrap());
    let (model, dir) = learns_on_two_devices(temp.path(), task, upsampler_source(&config), &mut export);
    assert_eq!(DiffusionUpsampler::load(dir, &Device::flex()).unwrap().config(), &config);
    assert!(bits(&model.network).iter().all(|bits| f32::from_bits(*bits).is_finite()));
}
