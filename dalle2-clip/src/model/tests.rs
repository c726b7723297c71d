use super::*;
use crate::{ImportOptions, PretrainedClip};
use burn::optim::GradientsParams;
use burn::tensor::Distribution;
use dalle2_core::Error;
use dalle2_core::FloatType;
use dalle2_core::text::{END, START};

fn config() -> ClipConfig {
    ClipConfig {
        vision: VisionTransformerConfig::new([16, 4], [16, 4, 2], 12),
        text: TextTransformerConfig::new(8, [16, 4, 2], 12),
    }
    .with_vocabulary([5, 6, 7, 8])
}

fn batch(config: &ClipConfig, device: &Device) -> (Tensor<4>, TokenBatch) {
    let pixels = Tensor::random([3, 3, 16, 16], Distribution::Normal(0.0, 1.0), device);
    let items = [[5, 6, 7], [6, 8, 5], [9, 9, 9]].map(|[a, b, c]| (vec![START, a, b, c, END, END, END, END], 5));
    (pixels, config.text.batch(&items, device).unwrap())
}

#[test]
fn presets_equal_their_files_and_are_valid() {
    for (name, file) in [
        ("tiny", include_str!("../../presets/tiny.json")),
        ("emoji", include_str!("../../presets/emoji.json")),
        ("vit_b_32", include_str!("../../presets/vit_b_32.json")),
        ("vit_l_14", include_str!("../../presets/vit_l_14.json")),
    ] {
        let preset = ClipConfig::preset(name).unwrap();
        assert_eq!(preset, serde_json::from_str(file).unwrap(), "{name}");
        assert_eq!(preset.validate(), Ok(()), "{name}");
        let written = serde_json::to_string(&preset.clone().with_vocabulary([3])).unwrap();
        assert_eq!(preset.with_vocabulary([3]), serde_json::from_str(&written).unwrap(), "{name}");
    }
    let error = ClipConfig::preset("vit_b_7").unwrap_err().to_string();
    assert!(error.contains("vit_b_7") && error.contains("vit_b_32"), "{error}");
}

#[test]
fn presets_have_the_published_sizes() {
    assert_eq!(ClipConfig::vit_b_32().num_params(), 151_277_313);
    assert_eq!(ClipConfig::vit_l_14().num_params(), 427_616_513);
}

#[test]
fn small_presets_stay_small() {
    let device = Device::flex();
    for (preset, limit) in [(ClipConfig::tiny(), 1_100_000), (ClipConfig::emoji(), 3_500_000)] {
        let preset = preset.with_vocabulary(0..1500);
        assert!(preset.num_params() <= limit, "{} parameters", preset.num_params());
        assert_eq!(preset.init(&device).num_params(), preset.num_params());
    }
}

#[test]
fn towers_must_share_a_space() {
    let mut config = config();
    config.vision.embed_dim = 13;
    let error = config.validate().unwrap_err();
    assert_eq!((error.field.as_str(), error.value.as_str()), ("vision.embed_dim", "13"));
    config.vision.image_size = 17;
    assert_eq!(config.validate().unwrap_err().field, "vision.image_size");
}

#[test]
fn every_parameter_gets_a_gradient() {
    let device = Device::flex().autodiff();
    let config = config();
    let model = config.init(&device);
    let (pixels, captions) = batch(&config, &device);
    let grads = GradientsParams::from_grads(model.loss(pixels, &captions, None).backward(), &model);
    // A block has two norms and six linear layers with bias; a tower has two blocks. Beside the blocks: class token,
    // patches, positions, two norms, projection; tokens, positions, norm, projection; and the logit scale.
    let blocks = 2 * 2 * 2 * (2 + 6);
    assert_eq!(grads.len(), blocks + (3 + 4 + 1) + (2 + 2 + 1) + 1);
    let scale = grads.get::<1>(model.logit_scale.id).unwrap().into_scalar::<f32>();
    assert!(scale != 0.0 && scale.is_finite());
}

#[test]
fn saved_and_loaded_models_are_equal_bit_for_bit() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let config = config();
    let model = config.init(&device);
    let (pixels, captions) = batch(&config, &device);
    model.save(&config, dir.path(), FloatType::F32).unwrap();
    let load = || PretrainedClip::load(dir.path(), &ImportOptions::default(), &device);
    let PretrainedClip { config: loaded_config, model: loaded, .. } = load().unwrap();
    assert_eq!(loaded_config, config);
    let loss = |model: &Clip| model.loss(pixels.clone(), &captions, None).into_data();
    loss(&loaded).assert_eq(&loss(&model), true);
    let scale = |model: &Clip| model.logit_scale.val().into_data();
    scale(&loaded).assert_eq(&scale(&model), true);

    let other = ClipConfig { text: TextTransformerConfig { n_layers: 1, ..config.text.clone() }, ..config };
    store::write_config(dir.path(), Clip::CLASS, &other).unwrap();
    let Err(Error::Weights { missing, unexpected, mismatched, .. }) = load() else {
        panic!("weights of another configuration must be refused");
    };
    assert_eq!((missing.len(), unexpected.len(), mismatched.len()), (0, 16, 0));
    assert!(unexpected.iter().all(|name| name.starts_with("text_model.encoder.layers.1.")), "{unexpected:?}");
}
