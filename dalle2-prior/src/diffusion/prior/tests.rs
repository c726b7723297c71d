use super::*;
use burn::nn::LinearConfig;
use burn::tensor::{Distribution, Tolerance};
use dalle2_core::TokenMask;
use dalle2_core::diffusion::{RecordedNoise, Sampler, SeededNoise};

const D: usize = 12;
const W: usize = 10;
const S: usize = 5;

fn prior(device: &Device) -> DiffusionPrior {
    let config = DiffusionPriorConfig::tiny(D, W, S);
    let mut network = config.init(device);
    network.output = LinearConfig::new(config.d_model, D).init(device);
    DiffusionPrior::new(config, network).unwrap()
}

fn text(lengths: &[usize], device: &Device) -> TextCondition {
    let b = lengths.len();
    TextCondition {
        pooled: Tensor::random([b, D], Distribution::Normal(0.0, 1.0), device),
        tokens: Tensor::random([b, S, W], Distribution::Normal(0.0, 1.0), device),
        mask: TokenMask::from_lengths(lengths, S, device),
    }
}

fn row(text: &TextCondition, i: usize) -> TextCondition {
    TextCondition {
        pooled: text.pooled.clone().narrow(0, i, 1),
        tokens: text.tokens.clone().narrow(0, i, 1),
        mask: TokenMask::from_keep(text.mask.keep().narrow(0, i, 1)),
    }
}

fn run(
    prior: &DiffusionPrior,
    text: &TextCondition,
    null: &TextCondition,
    options: &PriorOptions,
    seeds: &[u64],
) -> Tensor<2> {
    prior.sample(Captions { text, null }, options, &mut SeededNoise::new(seeds, 0), &mut |_| Ok(())).unwrap()
}

fn options() -> PriorOptions {
    PriorOptions { steps: Some(6), ..Default::default() }
}

fn assert_equal(a: Tensor<2>, b: Tensor<2>) {
    a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

#[test]
fn a_seed_gives_its_sample_alone_and_in_a_batch() {
    let device = Device::flex();
    let prior = prior(&device);
    let (text, null) = (text(&[5, 3, 2], &device), text(&[2], &device));
    for sampler in [Sampler::Ddim { eta: 0.0 }, Sampler::Ddpm] {
        let options = PriorOptions { sampler: Some(sampler), ..options() };
        let batch = run(&prior, &text, &null, &options, &[4, 5, 6]);
        assert_eq!(batch.to_data(), run(&prior, &text, &null, &options, &[4, 5, 6]).to_data());
        for i in 0..3 {
            assert_equal(run(&prior, &row(&text, i), &null, &options, &[4 + i as u64]), batch.clone().narrow(0, i, 1));
        }
        let other = run(&prior, &row(&text, 0), &null, &options, &[9]);
        assert!((other - batch.narrow(0, 0, 1)).abs().max().into_scalar::<f32>() > 1e-3);
    }
}

#[test]
fn samples_have_unit_length() {
    let device = Device::flex();
    let z = run(&prior(&device), &text(&[5, 3], &device), &text(&[2], &device), &options(), &[0, 1]);
    let length = z.powi_scalar(2).sum_dim(1).sqrt().into_data();
    length.assert_approx_eq::<f32>(&TensorData::from([[1.0f32], [1.0]]), Tolerance::rel_abs(1e-5, 1e-5));
}

#[test]
fn guidance_zero_forgets_the_caption_and_one_the_empty_caption() {
    let device = Device::flex();
    let prior = prior(&device);
    let (a, b, null) = (text(&[5], &device), text(&[4], &device), text(&[2], &device));
    let with = |guidance, text: &TextCondition, null: &TextCondition| {
        let options = PriorOptions { guidance: Some(guidance), candidates: Some(1), ..options() };
        run(&prior, text, null, &options, &[3])
    };
    assert_equal(with(0.0, &a, &null), with(0.0, &b, &null));
    assert_equal(with(0.0, &a, &null), with(1.0, &null, &a));
    assert_equal(with(1.0, &a, &null), with(1.0, &a, &b));
    assert!((with(2.0, &a, &null) - with(2.0, &a, &b)).abs().max().into_scalar::<f32>() > 1e-4);
}

#[test]
fn candidates_come_from_the_noise_of_their_own_item() {
    let device = Device::flex();
    let prior = prior(&device);
    let (text, null) = (text(&[5, 4], &device), text(&[2], &device));
    let options = PriorOptions { candidates: Some(3), ..options() };
    let batch = run(&prior, &text, &null, &options, &[7, 8]);
    assert_equal(run(&prior, &row(&text, 1), &null, &options, &[8]), batch.narrow(0, 1, 1));
}

#[test]
fn every_step_is_reported_and_can_cancel() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    let mut seen = Vec::new();
    let result =
        prior.sample(Captions { text: &text, null: &null }, &options(), &mut SeededNoise::new(&[0], 0), &mut |event| {
            seen.push((event.step, event.total, event.x_start.is_none()));
            if event.step == 2 { Err(Error::Cancelled) } else { Ok(()) }
        });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(seen, [(1, 6, true), (2, 6, true)]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_name() {
    let device = Device::flex();
    let prior = prior(&device);
    let (good, null) = (text(&[5], &device), text(&[2], &device));
    let message = |text: &TextCondition, null: &TextCondition, options: PriorOptions| {
        let mut noise = SeededNoise::new(&[0], 0);
        prior.sample(Captions { text, null }, &options, &mut noise, &mut |_| Ok(())).unwrap_err().to_string()
    };
    let expect =
        |message: String, parts: &[&str]| assert!(parts.iter().all(|part| message.contains(part)), "{message}");

    let mut narrow = good.clone();
    narrow.pooled = Tensor::ones([1, D - 1], &device);
    expect(message(&narrow, &null, options()), &["embeddings of width 12", "width 11", "caption"]);
    let mut short = null.clone();
    short.tokens = Tensor::ones([1, S - 1, W], &device);
    expect(message(&good, &short, options()), &["5 tokens", "4 tokens", "empty caption"]);
    let mut nan = good.clone();
    nan.pooled = nan.pooled * f64::NAN;
    expect(message(&nan, &null, options()), &["caption", "not finite"]);
    expect(message(&good, &text(&[1, 2], &device), options()), &["one empty caption", "2"]);

    expect(message(&good, &null, PriorOptions { steps: Some(0), ..options() }), &["`steps` = 0"]);
    expect(message(&good, &null, PriorOptions { steps: Some(1001), ..options() }), &["between 1 and 1000"]);
    expect(message(&good, &null, PriorOptions { guidance: Some(f64::NAN), ..options() }), &["`guidance` = NaN"]);
    expect(message(&good, &null, PriorOptions { candidates: Some(0), ..options() }), &["`candidates` = 0"]);
    let sampler = Some(Sampler::Ddim { eta: 2.0 });
    expect(message(&good, &null, PriorOptions { sampler, ..options() }), &["`sampler.eta` = 2"]);
}

#[test]
fn the_noise_source_is_asked_once_per_step() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    let options = PriorOptions { sampler: Some(Sampler::Ddpm), candidates: Some(2), ..options() };
    let mut noise = RecordedNoise::new();
    for _ in 0..6 {
        noise.push(&[2, D], vec![0.1; 2 * D]).unwrap(); // the start and one for each step but the last
    }
    prior.sample(Captions { text: &text, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap();
    assert_eq!(noise.remaining(), 0);
}

#[test]
fn the_measured_variance_is_sampled_with_and_saved() {
    let device = Device::flex();
    let (text, null) = (text(&[5, 3, 4], &device), text(&[2], &device));
    let image = Tensor::random([3, D], Distribution::Normal(0.0, 1.0), &device);
    let mut noise = SeededNoise::new(&[0, 1, 2], 0);
    let plain = prior(&device);
    let measured = plain.clone().with_measured_variance(&text, image.clone(), 10, &mut noise).unwrap();
    let table = measured.config().analytic_variance.clone().unwrap();
    // A network that knows nothing misses by about the variance of a scaled embedding and its own.
    assert!((0.3..3.0).contains(&table.at(999)), "{table:?}");
    let ddpm = PriorOptions { sampler: Some(Sampler::Ddpm), ..options() };
    let [a, b] = [&plain, &measured].map(|prior| run(prior, &text, &null, &ddpm, &[1, 2, 3]));
    assert!((a - b).abs().max().into_scalar::<f32>() > 1e-3, "more noise is added");
    // DDIM has a variance of its own.
    assert_equal(
        run(&plain, &text, &null, &options(), &[1, 2, 3]),
        run(&measured, &text, &null, &options(), &[1, 2, 3]),
    );
    let dir = tempfile::tempdir().unwrap();
    measured.save(dir.path(), FloatType::F32).unwrap();
    assert_eq!(DiffusionPrior::load(dir.path(), &device).unwrap().config(), measured.config());
    let wide = Tensor::ones([3, D + 1], &device);
    let error = prior(&device).with_measured_variance(&text, wide, 10, &mut noise).unwrap_err().to_string();
    assert!(error.contains("[3, 13]"), "{error}");
}

#[test]
fn every_sampler_takes_the_steps_it_is_asked_for() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 0.0 }, Sampler::DpmSolver2m, Sampler::DpmSolver2s] {
        for steps in [1, 7, 30] {
            let mut seen = 0;
            let options = PriorOptions { sampler: Some(sampler), steps: Some(steps), ..Default::default() };
            let mut noise = SeededNoise::new(&[3], 0);
            let z = prior.sample(Captions { text: &text, null: &null }, &options, &mut noise, &mut |event| {
                seen = event.step;
                Ok(())
            });
            assert!(z.unwrap().abs().sum().into_scalar::<f32>().is_finite());
            assert_eq!(seen, steps, "{sampler:?}");
        }
    }
}

#[test]
fn a_self_conditioned_prior_samples_from_its_own_estimates() {
    let device = Device::flex();
    let config = DiffusionPriorConfig { self_conditioning: true, ..DiffusionPriorConfig::tiny(D, W, S) };
    let mut network = config.init(&device);
    network.output = LinearConfig::new(config.d_model, D).init(&device);
    let with = DiffusionPrior::new(config.clone(), network.clone()).unwrap();
    network.estimate_proj = None;
    let without = DiffusionPrior::new(DiffusionPriorConfig { self_conditioning: false, ..config }, network).unwrap();
    let (text, null) = (text(&[5], &device), text(&[2], &device));
    let run = |prior, steps| run(prior, &text, &null, &PriorOptions { steps: Some(steps), ..options() }, &[1]);
    assert_equal(run(&with, 1), run(&without, 1)); // the first step has no estimate yet
    assert!((run(&with, 6) - run(&without, 6)).abs().max().into_scalar::<f32>() > 1e-3);
}

#[test]
fn saved_and_loaded_it_samples_the_same() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    let dir = tempfile::tempdir().unwrap();
    prior.save(dir.path(), FloatType::F32).unwrap();
    let loaded = DiffusionPrior::load(dir.path(), &device).unwrap();
    assert_eq!(loaded.config(), prior.config());
    let [a, b] = [&prior, &loaded].map(|prior| run(prior, &text, &null, &options(), &[1]).into_data());
    assert_eq!(a, b);

    let mut config: serde_json::Value = store::read_json(dir.path().join(store::CONFIG_FILE)).unwrap();
    config["n_heads"] = 5.into();
    store::write_json(dir.path().join(store::CONFIG_FILE), &config).unwrap();
    let message = DiffusionPrior::load(dir.path(), &device).unwrap_err().to_string();
    assert!(message.contains("config.json") && message.contains("n_heads"), "{message}");
}

#[test]
fn defaults_are_those_of_the_configuration() {
    let prior = prior(&Device::flex());
    let expected = PriorOptions {
        steps: Some(25),
        guidance: Some(2.0),
        sampler: Some(Sampler::Ddim { eta: 0.0 }),
        candidates: Some(2),
        ..Default::default()
    };
    assert_eq!(prior.defaults(), expected);
    assert_eq!(prior.num_steps(&expected).unwrap(), 25);
    assert_eq!((prior.embed_dim(), prior.token_width(), prior.context_length()), (D, W, S));
}
