//! The pipeline over its public face, with small random parts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use burn::tensor::{Distribution, Tensor};
use dalle2::base::diffusion::{NoiseSource, SeededNoise};
use dalle2::clip::ClipTextEncoder;
use dalle2::prior::{AutoregressivePrior, AutoregressivePriorConfig, EmbeddingQuantizer, QuantizerOptions};
use dalle2::{Device, Error, GenerateRequest, Pipeline, Stage};

use support::{clip, decoder, pipeline, prior, request, upsampler};

fn message(result: Result<dalle2::Generation, Error>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn the_same_seed_gives_the_same_image_whatever_ran_before() {
    let pipeline = pipeline(&Device::flex());
    let first = pipeline.generate(request()).unwrap();
    assert_eq!(first.images[0].dimensions(), (64, 64));
    assert_eq!(pipeline.image_size(), 64);
    let again = pipeline.generate(request()).unwrap();
    assert_eq!(first.images, again.images);
    pipeline
        .generate(GenerateRequest::new("apple").seed(1).prior_steps(2).decoder_steps(2).upsampler_steps(1))
        .unwrap();
    assert_eq!(first.images, pipeline.generate(request()).unwrap().images);
    assert_ne!(first.images, pipeline.generate(request().seed(8)).unwrap().images);
}

#[test]
fn image_i_of_a_request_has_seed_plus_i_in_any_batch_size() {
    let pipeline = pipeline(&Device::flex());
    let three = pipeline.generate(request().num_images(3).batch_size(2)).unwrap();
    assert_eq!(
        (three.images.len(), three.seeds, three.embeddings.clone().unwrap().dims()),
        (3, vec![7, 8, 9], [3, 64])
    );
    let third = pipeline.generate(request().seed(9)).unwrap();
    let close = |a: u8, b: u8| a.abs_diff(b) <= 1;
    assert!(three.images[2].as_raw().iter().zip(third.images[0].as_raw()).all(|(a, b)| close(*a, *b)));
}

#[test]
fn a_saved_pipeline_generates_the_same() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let saved = pipeline(&device);
    saved.save_pretrained(dir.path()).unwrap();
    let loaded = Pipeline::from_pretrained(dir.path(), &device).unwrap();
    assert_eq!(saved.generate(request()).unwrap().images, loaded.generate(request()).unwrap().images);
    assert!(loaded.image_encoder().is_some());
}

#[test]
fn an_autoregressive_prior_takes_the_place_of_a_diffusion_prior() {
    let device = Device::flex();
    let (config, model) = (clip(), support::clip_network(&device));
    let (d, w, s) = (config.embed_dim(), config.text.d_model, config.text.context_length);
    let prior = AutoregressivePriorConfig {
        components: 8,
        d_model: 32,
        n_heads: 2,
        n_layers: 1,
        ..AutoregressivePriorConfig::tiny(d, w, s)
    };
    let random = || Tensor::random([40, d], Distribution::Normal(0.0, 1.0), &device);
    let quantizer = EmbeddingQuantizer::fit(random(), random(), &QuantizerOptions::of(&prior)).unwrap();
    let network = prior.init(&device);
    let saved = Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(config.text.clone(), &model.text).unwrap())
        .prior(AutoregressivePrior::new(prior, network, quantizer).unwrap())
        .decoder(decoder(16, &device))
        .device(&device)
        .build()
        .unwrap();
    let dir = tempfile::tempdir().unwrap();
    saved.save_pretrained(dir.path()).unwrap();
    let loaded = Pipeline::from_pretrained(dir.path(), &device).unwrap();
    let request = || GenerateRequest::new("a red apple").seed(7).decoder_steps(3);
    let expected = saved.generate(request()).unwrap().images;
    assert_eq!(loaded.generate(request()).unwrap().images, expected);
    assert_ne!(loaded.generate(request().prior_temperature(0.0)).unwrap().images, expected);

    let steps = message(loaded.generate(request().prior_steps(25)));
    assert!(steps.contains("`prior.steps` = 25") && steps.contains("component, 8"), "{steps}");
    let temperature = message(pipeline(&device).generate(request().prior_temperature(0.5)));
    assert!(temperature.contains("temperature` = 0.5") && temperature.contains("autoregressive"), "{temperature}");
    assert!(message(loaded.generate(request().prior_top_p(f64::NAN))).contains("top_p` = NaN"));
}

#[test]
fn events_come_in_order_and_can_cancel() {
    let pipeline = pipeline(&Device::flex());
    let mut seen = Vec::new();
    let result = pipeline.generate_with(request(), |event| {
        seen.push((event.stage, event.step, event.total));
        assert_eq!(event.preview().unwrap().is_some(), event.stage != Stage::Prior);
        if event.stage == Stage::Upsampler(0) { Err(Error::Cancelled) } else { Ok(()) }
    });
    assert!(matches!(result, Err(Error::Cancelled)));
    let stage = |stage, n: usize| (1..=n).map(move |step| (stage, step, n));
    let expected: Vec<_> =
        stage(Stage::Prior, 3).chain(stage(Stage::Decoder, 3)).chain([(Stage::Upsampler(0), 1, 2)]).collect();
    assert_eq!(seen, expected);
    let after = pipeline.generate(request()).unwrap();
    assert_eq!(after.images, pipeline.generate(request()).unwrap().images);
}

#[test]
fn noise_can_be_replaced() {
    let pipeline = pipeline(&Device::flex());
    let from = |offset: u64| {
        let noise = move |_: Stage, seeds: &[u64]| -> Box<dyn NoiseSource> {
            Box::new(SeededNoise::new(&[seeds[0] + offset], 40))
        };
        pipeline.generation(request()).noise(noise).run().unwrap().images
    };
    assert_eq!(from(0), from(0));
    assert_ne!(from(0), from(1));
}

#[test]
fn bad_requests_are_named() {
    let pipeline = pipeline(&Device::flex());
    let empty = message(pipeline.generate("  "));
    assert!(empty.contains("caption"), "{empty}");
    let long = message(pipeline.generate("apple ".repeat(200)));
    assert!(long.contains("32") && long.contains("apple"), "{long}");
    for (request, part) in [
        (request().num_images(0), "num_images"),
        (request().batch_size(0), "batch_size"),
        (request().prior_steps(0), "prior.steps"),
        (request().decoder_steps(0), "decoder.steps"),
        (request().decoder_steps(1001), "decoder.steps"),
        (request().upsampler_steps(0), "upsampler.steps"),
        (request().guidance(f64::INFINITY), "decoder.guidance"),
        (request().prior_guidance(-1.0), "prior.guidance"),
        (request().prior_candidates(0), "prior.candidates"),
    ] {
        let message = message(pipeline.generate(request));
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn incompatible_parts_are_refused_together() {
    let device = Device::flex();
    let (config, model) = (clip(), support::clip_network(&device));
    let error = Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(config.text.clone(), &model.text).unwrap())
        .prior(prior(48, &device))
        .upsampler(upsampler(8, &device))
        .upsampler(upsampler(8, &device))
        .build()
        .unwrap_err()
        .to_string();
    for part in ["64", "48", "the decoder is missing", "upsampler 1 has 32"] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_damaged_directory_is_named() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    let load = |dir: &Path| Pipeline::from_pretrained(dir, &device).unwrap_err().to_string();
    assert!(load(&root.join("nowhere")).contains("does not exist"));
    pipeline(&device).save_pretrained(root).unwrap();

    let damage = |file: &str, change: &dyn Fn(&[u8]) -> Vec<u8>, parts: &[&str]| {
        let path = root.join(file);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, change(&whole)).unwrap();
        let error = load(root);
        for part in parts {
            assert!(error.contains(part), "{file}: {error}");
        }
        std::fs::write(&path, whole).unwrap();
    };
    let replace = |from: &'static str, to: &'static str| {
        move |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap().replace(from, to).into_bytes()
    };
    let weights = "decoder/model.safetensors";
    damage(weights, &|bytes| bytes[..bytes.len() / 2].to_vec(), &[weights]);
    damage(weights, &|_| Vec::new(), &[weights]);
    damage(weights, &|_| b"not a weights file at all".to_vec(), &[weights]);
    damage("prior/config.json", &|bytes| bytes[..20].to_vec(), &["prior/config.json"]);
    damage("prior/config.json", &replace("\"d_model\": 32", "\"d_model\": 64"), &["prior", "[64"]);
    damage("decoder/config.json", &replace("\"patch\"", "\"patches\""), &["decoder/config.json", "patches"]);
    damage("decoder/config.json", &replace("\"n_groups\": 8", "\"n_groups\": 7"), &["n_groups"]);
    damage("model_index.json", &replace("\"Dalle2Decoder\"", "\"UNet2D\""), &["decoder", "UNet2D"]);
    damage("model_index.json", &replace("\"prior\"", "\"priors\""), &["priors"]);
    damage("model_index.json", &replace("Dalle2Pipeline", "Other"), &["_class_name", "Dalle2Pipeline"]);
    damage("model_index.json", &|_| b"[]".to_vec(), &["model_index.json"]);
    std::fs::remove_file(root.join("upsampler_1/model.safetensors")).unwrap();
    assert!(load(root).contains("upsampler_1/model.safetensors"));
}

#[test]
fn saving_where_one_cannot_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = pipeline(&Device::flex()).save_pretrained(file.join("model")).unwrap_err().to_string();
    assert!(error.contains("file"), "{error}");
}

#[test]
fn two_threads_can_share_a_pipeline() {
    let pipeline = pipeline(&Device::flex());
    let alone = [3, 4].map(|seed| pipeline.generate(request().seed(seed)).unwrap().images);
    let together = std::thread::scope(|scope| {
        [3, 4]
            .map(|seed| {
                scope.spawn({
                    let pipeline = &pipeline;
                    move || pipeline.generate(request().seed(seed)).unwrap().images
                })
            })
            .map(|thread| thread.join().unwrap())
    });
    assert_eq!(alone, together);
}

#[test]
fn captions_of_several_requests_share_batches() {
    let pipeline = pipeline(&Device::flex());
    let requests =
        [request(), request().caption("apple").seed(3).num_images(2), request().seed(5), request().decoder_steps(2)];
    let mut overall = Vec::new();
    let many = pipeline.generate_many(&requests, |event| {
        overall.push(event.overall());
        Ok(())
    });
    let many = many.unwrap();
    assert_eq!(
        many.iter().map(|generation| generation.seeds.clone()).collect::<Vec<_>>(),
        [vec![7], vec![3, 4], vec![5], vec![7]]
    );
    for (request, generation) in requests.into_iter().zip(&many) {
        let alone = pipeline.generate(request).unwrap();
        for (a, b) in alone.images.iter().zip(&generation.images) {
            let largest = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
            assert!(largest <= 1, "differs by {largest}");
        }
        assert_eq!(generation.embeddings.as_ref().unwrap().dims(), alone.embeddings.unwrap().dims());
    }
    // The first four images are one batch, the last request another.
    assert_eq!(overall.len(), (3 + 3 + 2) + (3 + 2 + 2));
    assert!(overall.windows(2).all(|pair| pair[0].0 + 1 == pair[1].0));
    assert_eq!(overall.last(), Some(&(15, 15)));
}

#[test]
fn a_plan_counts_the_steps_of_all_batches() {
    let pipeline = pipeline(&Device::flex());
    let request = request().num_images(3).batch_size(2);
    let plan = pipeline.plan(&request).unwrap();
    let stages: Vec<_> = plan.iter().map(|planned| (planned.stage, planned.steps)).collect();
    assert_eq!(stages, [(Stage::Prior, 6), (Stage::Decoder, 6), (Stage::Upsampler(0), 4)]);
    let mut seen = Vec::new();
    pipeline
        .generate_with(request, |event| {
            seen.push(event.overall());
            Ok(())
        })
        .unwrap();
    assert_eq!(seen, (1..=16).map(|step| (step, 16)).collect::<Vec<_>>());
}

#[test]
fn validation_finds_what_generation_refuses() {
    let pipeline = pipeline(&Device::flex());
    let long = "apple ".repeat(200);
    for request in [
        request().caption(long.as_str()),
        request().guidance(2.0).negative_caption(long.as_str()),
        request().prior_guidance(1.0).guidance(1.0).negative_caption("red"),
        request().max_upsamplers(9),
        request().seed(u64::MAX).num_images(2),
        request().embeddings(Tensor::zeros([1, 64], &Device::flex())),
        request().size(100),
    ] {
        let validated = pipeline.validate(&request).unwrap_err();
        let generated = pipeline.generate(request).unwrap_err();
        assert_eq!(validated.kind(), dalle2::ErrorKind::Request, "{validated}");
        assert_eq!(validated.to_string(), generated.to_string());
    }
    let short = pipeline.truncate_caption(&long).unwrap();
    pipeline.validate(&request().caption(short.as_str())).unwrap();
    assert!(pipeline.validate(&request().caption(format!("{short} apple"))).is_err());
}

#[test]
fn seeds_can_be_listed() {
    let pipeline = pipeline(&Device::flex());
    let listed = pipeline.generate(request().seeds([9, 7]).batch_size(1)).unwrap();
    assert_eq!((listed.seeds.as_slice(), listed.images.len()), (&[9, 7][..], 2));
    assert_eq!(listed.images[1], pipeline.generate(request()).unwrap().images[0]);
    assert!(format!("{listed:?}").len() < 1000 && format!("{pipeline:?}").len() < 1000);
}
