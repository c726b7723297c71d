use super::*;
use crate::QuantizerOptions;
use burn::nn::LinearConfig;
use burn::tensor::{Distribution, Tolerance};
use dalle2_core::TokenMask;
use dalle2_core::diffusion::{RecordedNoise, Sampler, SeededNoise};

const D: usize = 12;
const W: usize = 10;
const S: usize = 5;
const K: usize = 6;

fn config() -> AutoregressivePriorConfig {
    AutoregressivePriorConfig {
        components: K,
        buckets: 64,
        dot_buckets: 4,
        d_model: 32,
        n_heads: 4,
        n_layers: 2,
        ..AutoregressivePriorConfig::tiny(D, W, S)
    }
}

fn quantizer(config: &AutoregressivePriorConfig, device: &Device) -> EmbeddingQuantizer {
    let random = || Tensor::random([40, D], Distribution::Normal(0.0, 1.0), device);
    EmbeddingQuantizer::fit(random(), random(), &QuantizerOptions::of(config)).unwrap()
}

/// Its logits differ from bucket to bucket and from caption to caption.
fn prior(device: &Device) -> AutoregressivePrior {
    let config = config();
    let mut network = config.init(device);
    let mut output = LinearConfig::new(config.d_model, config.buckets).init(device);
    output.weight = output.weight.map(|weight| weight * 6.0); // or two captions often draw the same buckets
    network.output = output;
    let quantizer = quantizer(&config, device);
    AutoregressivePrior::new(config, network, quantizer).unwrap()
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
    prior: &AutoregressivePrior,
    text: &TextCondition,
    null: &TextCondition,
    options: &PriorOptions,
    seeds: &[u64],
) -> Tensor<2> {
    prior.sample(Captions { text, null }, options, &mut SeededNoise::new(seeds, 0), &mut |_| Ok(())).unwrap()
}

fn assert_equal(a: Tensor<2>, b: Tensor<2>) {
    a.into_data().assert_approx_eq::<f32>(&b.into_data(), Tolerance::rel_abs(1e-4, 1e-5));
}

fn largest(x: Tensor<2>) -> f32 {
    x.abs().max().into_scalar::<f32>()
}

#[test]
fn a_seed_gives_its_sample_alone_and_in_a_batch() {
    let device = Device::flex();
    let prior = prior(&device);
    let (text, null) = (text(&[5, 3, 2], &device), text(&[2], &device));
    let options = PriorOptions::default();
    let batch = run(&prior, &text, &null, &options, &[4, 5, 6]);
    assert_eq!(batch.dims(), [3, D]);
    assert_eq!(batch.to_data(), run(&prior, &text, &null, &options, &[4, 5, 6]).to_data());
    for i in 0..3 {
        assert_equal(run(&prior, &row(&text, i), &null, &options, &[4 + i as u64]), batch.clone().narrow(0, i, 1));
    }
    let other = run(&prior, &row(&text, 0), &null, &options, &[9]);
    assert!(largest(other - batch.narrow(0, 0, 1)) > 1e-2);
}

#[test]
fn tokens_follow_the_uncached_network() {
    // Greedy sampling without guidance picks, token by token, the largest logit of the whole forward pass.
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[4], &device), text(&[2], &device));
    let options =
        PriorOptions { guidance: Some(1.0), temperature: Some(0.0), candidates: Some(1), ..Default::default() };
    let mut noise = RecordedNoise::new();
    noise.push(&[1, 1 + K], vec![-9.0; 1 + K]).unwrap(); // the least dot product of the upper half
    let found =
        prior.sample_tokens(Captions { text: &text, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap();
    let mut tokens = [0i64; K];
    for k in 0..K {
        let ids = Tensor::<2, Int>::from_data(TensorData::new(tokens.to_vec(), [1, K]), &device);
        let logits = prior.network.forward(&text, Tensor::from_ints([2], &device), ids);
        tokens[k] = logits.narrow(1, k, 1).argmax(2).into_scalar::<i64>();
    }
    assert_eq!(found, tokens.map(|t| t as usize));
}

#[test]
fn the_dot_product_comes_from_the_upper_half() {
    // All rows of the table but the upper half's say "not a number", which would end in an error.
    let device = Device::flex();
    let mut prior = prior(&device);
    let upper = prior.network.dot_table.weight.val().narrow(0, 2, 2);
    let lower = Tensor::full([2, 32], f32::NAN, &device);
    let dropped = prior.network.dot_table.weight.val().narrow(0, 4, 1);
    prior.network.dot_table.weight = burn::module::Param::from_tensor(Tensor::cat(vec![lower, upper, dropped], 0));
    let (text, null) = (text(&[5; 8], &device), text(&[2], &device));
    run(&prior, &text, &null, &PriorOptions::default(), &[0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn guidance_zero_forgets_the_caption_and_one_the_empty_caption() {
    let device = Device::flex();
    let prior = prior(&device);
    let (a, b, null) = (text(&[5], &device), text(&[4], &device), text(&[2], &device));
    let with = |guidance, text: &TextCondition, null: &TextCondition| {
        let options = PriorOptions { guidance: Some(guidance), candidates: Some(1), ..Default::default() };
        run(&prior, text, null, &options, &[3])
    };
    assert_equal(with(0.0, &a, &null), with(0.0, &b, &null));
    assert_equal(with(1.0, &a, &null), with(1.0, &a, &b));
    assert!(largest(with(3.0, &a, &null) - with(3.0, &a, &b)) > 1e-3);
    assert!(largest(with(1.0, &a, &null) - with(1.0, &b, &null)) > 1e-3);
}

#[test]
fn candidates_come_from_the_noise_of_their_own_item() {
    let device = Device::flex();
    let prior = prior(&device);
    let (text, null) = (text(&[5, 4], &device), text(&[2], &device));
    let options = PriorOptions { candidates: Some(3), ..Default::default() };
    let batch = run(&prior, &text, &null, &options, &[7, 8]);
    assert_equal(run(&prior, &row(&text, 1), &null, &options, &[8]), batch.clone().narrow(0, 1, 1));
    // More candidates are never further from the caption.
    let cosine = |z: Tensor<2>| dalle2_core::metrics::cosine_similarity(z, text.pooled.clone()).unwrap().into_data();
    let one = run(&prior, &text, &null, &PriorOptions { candidates: Some(1), ..Default::default() }, &[7, 8]);
    let (one, three) = (cosine(one), cosine(batch));
    assert!(one.iter::<f32>().zip(three.iter::<f32>()).all(|(one, three)| three >= one - 1e-6));
}

#[test]
fn samples_are_what_buckets_stand_for() {
    let device = Device::flex();
    let prior = prior(&device);
    let (text, null) = (text(&[5, 3], &device), text(&[2], &device));
    let z = run(&prior, &text, &null, &PriorOptions::default(), &[0, 1]);
    let length = z.powi_scalar(2).sum_dim(1).sqrt().into_data();
    length.assert_approx_eq::<f32>(&TensorData::from([[1.0f32], [1.0]]), Tolerance::rel_abs(1e-5, 1e-5));
}

#[test]
fn every_component_is_reported_and_can_cancel() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    let mut seen = Vec::new();
    let options = PriorOptions::default();
    let result =
        prior.sample(Captions { text: &text, null: &null }, &options, &mut SeededNoise::new(&[0], 0), &mut |event| {
            seen.push((event.step, event.total, event.x_start.is_none()));
            if event.step == 2 { Err(Error::Cancelled) } else { Ok(()) }
        });
    assert!(matches!(result, Err(Error::Cancelled)));
    assert_eq!(seen, [(1, K, true), (2, K, true)]);
}

#[test]
fn what_does_not_fit_is_refused_with_its_name() {
    let device = Device::flex();
    let prior = prior(&device);
    let (good, null) = (text(&[5], &device), text(&[2], &device));
    let message = |text: &TextCondition, options: PriorOptions| {
        let mut noise = SeededNoise::new(&[0], 0);
        prior.sample(Captions { text, null: &null }, &options, &mut noise, &mut |_| Ok(())).unwrap_err().to_string()
    };
    let expect =
        |message: String, parts: &[&str]| assert!(parts.iter().all(|part| message.contains(part)), "{message}");
    let options = PriorOptions::default;

    let mut narrow = good.clone();
    narrow.pooled = Tensor::ones([1, D - 1], &device);
    expect(message(&narrow, options()), &["embeddings of width 12", "width 11", "caption"]);
    let mut nan = good.clone();
    nan.pooled = nan.pooled * f64::NAN;
    expect(message(&nan, options()), &["caption", "not finite"]);
    expect(message(&good, PriorOptions { guidance: Some(f64::NAN), ..options() }), &["`guidance` = NaN"]);
    expect(message(&good, PriorOptions { temperature: Some(f64::INFINITY), ..options() }), &["`temperature` = inf"]);
    expect(message(&good, PriorOptions { top_p: Some(1.5), ..options() }), &["`top_p` = 1.5"]);
    expect(message(&good, PriorOptions { candidates: Some(0), ..options() }), &["`candidates` = 0"]);
    expect(message(&good, PriorOptions { steps: Some(25), ..options() }), &["`steps` = 25", "component"]);
    expect(message(&good, PriorOptions { sampler: Some(Sampler::Ddpm), ..options() }), &["`sampler`", "temperature"]);

    let other = AutoregressivePriorConfig { components: K - 1, ..config() };
    let network = other.init(&device);
    let error = AutoregressivePrior::new(other, network, prior.quantizer.clone()).unwrap_err().to_string();
    expect(error, &["components", "6", "5"]);
}

#[test]
fn saved_and_loaded_it_samples_the_same() {
    let device = Device::flex();
    let (prior, text, null) = (prior(&device), text(&[5], &device), text(&[2], &device));
    let dir = tempfile::tempdir().unwrap();
    prior.save(dir.path(), FloatType::F32).unwrap();
    let loaded = AutoregressivePrior::load(dir.path(), &device).unwrap();
    assert_eq!((loaded.config(), loaded.quantizer()), (prior.config(), prior.quantizer()));
    let [a, b] = [&prior, &loaded].map(|p| run(p, &text, &null, &PriorOptions::default(), &[1]).into_data());
    assert_eq!(a, b);
    std::fs::remove_file(dir.path().join("pca.safetensors")).unwrap();
    let message = AutoregressivePrior::load(dir.path(), &device).unwrap_err().to_string();
    assert!(message.contains("pca.safetensors"), "{message}");
}

#[test]
fn defaults_are_those_of_the_configuration() {
    let prior = prior(&Device::flex());
    let expected = PriorOptions {
        guidance: Some(2.0),
        candidates: Some(2),
        temperature: Some(1.0),
        top_p: Some(1.0),
        ..Default::default()
    };
    assert_eq!(prior.defaults(), expected);
    assert_eq!(prior.num_steps(&expected).unwrap(), K);
    assert_eq!((prior.embed_dim(), prior.token_width(), prior.context_length()), (D, W, S));
}
