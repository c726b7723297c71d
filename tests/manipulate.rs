//! The manipulations and the requests that they share, with small random parts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use burn::tensor::{Tensor, TensorData};
use dalle2::base::metrics::cosine_similarity;
use dalle2::base::{Components, EmbeddingPca, UpsamplerOptions};
use dalle2::{Device, Error, GenerateRequest, Generation, NoisePath, Pipeline, RgbImage, Source, Stage, StartNoise};

use support::{gradient, pipeline, request};

/// No caption, few steps.
fn quick() -> GenerateRequest {
    GenerateRequest::default().seed(7).prior_steps(3).decoder_steps(3).upsampler_steps(2).max_upsamplers(0)
}

/// Batches of other sizes differ in the last bits.
fn assert_same(a: &RgbImage, b: &RgbImage) {
    assert_eq!(a.dimensions(), b.dimensions());
    let most = a.as_raw().iter().zip(b.as_raw()).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
    assert!(most <= 1, "pixels differ by up to {most}");
}

fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.unwrap_err().to_string()
}

fn embeddings(generation: &Generation) -> Tensor<2> {
    generation.embeddings.clone().unwrap()
}

fn cosines(a: Tensor<2>, b: Tensor<2>) -> Vec<f32> {
    let b = b.clone().repeat_dim(0, a.dims()[0] / b.dims()[0]);
    cosine_similarity(a, b).unwrap().into_data().try_to_vec().unwrap()
}

#[test]
fn variations_without_noise_are_the_reconstruction() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(40, 24, 90);
    let reconstruction = pipeline.invert(&image).request(quick()).run().unwrap().reconstruction;
    assert_eq!(reconstruction.dimensions(), (16, 16));
    let still = pipeline.vary(&image).eta(0.0).request(quick().num_images(2)).run().unwrap();
    still.images.iter().for_each(|image| assert_same(image, &reconstruction));

    let generate = |start, seed| {
        pipeline.vary(&image).start_noise(start).request(quick().seed(seed)).run().unwrap().images.remove(0)
    };
    for start in [StartNoise::Inverted, StartNoise::Random] {
        assert_eq!(generate(start, 1), generate(start, 1));
        assert_ne!(generate(start, 1), generate(start, 2));
        assert_ne!(generate(start, 1), reconstruction);
    }
    assert_ne!(generate(StartNoise::Inverted, 1), generate(StartNoise::Random, 1));
}

#[test]
fn upsamplers_are_inverted_on_request() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(64, 64, 10);
    let inversion = pipeline.invert(&image).evaluations(1).upsamplers(1).request(quick()).run().unwrap();
    assert_eq!(inversion.reconstruction.dimensions(), (64, 64));
    assert_eq!((inversion.noise.dims(), inversion.upsampler_noise[0].dims()), ([1, 3, 16, 16], [1, 3, 64, 64]));
    assert!(inversion.psnr.is_finite());
    assert!(message(pipeline.invert(&image).upsamplers(2).request(quick()).run()).contains("2 upsamplers"));
}

#[test]
fn the_ends_of_an_interpolation_are_the_two_reconstructions() {
    let pipeline = pipeline(&Device::flex());
    let (a, b) = (gradient(16, 16, 20), gradient(30, 20, 230));
    let reconstruction = |image| pipeline.invert(image).request(quick()).run().unwrap();
    let frames = pipeline.interpolate(&a, &b).frames(5).request(quick()).run().unwrap();
    assert_eq!(frames.images.len(), 5);
    let (first, last) = (reconstruction(&a), reconstruction(&b));
    assert_same(&frames.images[0], &first.reconstruction);
    assert_same(&frames.images[4], &last.reconstruction);
    let (from, to) = (cosines(embeddings(&frames), first.embedding), cosines(embeddings(&frames), last.embedding));
    assert!(from.is_sorted_by(|a, b| a > b) && to.is_sorted_by(|a, b| a < b), "{from:?} {to:?}");
    assert!(from[0] > 0.99999 && to[4] > 0.99999);
}

#[test]
fn captions_and_embeddings_can_be_ends() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 20);
    let fixed = |request| {
        pipeline.interpolate("red apple", &image).frames(3).noise_path(NoisePath::Fixed).request(request).run()
    };
    let both = fixed(quick()).unwrap();
    let output = pipeline.generate(quick_caption("red apple").stop_after(Stage::Prior)).unwrap();
    assert!(output.images.is_empty());
    assert!(cosines(embeddings(&both).slice_dim(0, 0..1), embeddings(&output))[0] > 0.99999);
    // With fixed noise the last frame is what the seed gives for the image's embedding.
    let alone = quick().guidance(1.0).embeddings(pipeline.embed_image(&image).unwrap());
    assert_same(&both.images[2], &pipeline.generate(alone).unwrap().images[0]);
    // At full size too: the frames share the upsamplers' noise.
    let full = || quick().max_upsamplers(1);
    let large = fixed(full()).unwrap();
    let alone = full().guidance(1.0).embeddings(pipeline.embed_image(&image).unwrap());
    assert_eq!(large.images[2].dimensions(), (64, 64));
    assert_same(&large.images[2], &pipeline.generate(alone).unwrap().images[0]);
    let apples = pipeline.interpolate(embeddings(&output), "apple").request(quick()).run().unwrap();
    assert_eq!(apples.images.len(), 8);
}

fn quick_caption(caption: &str) -> GenerateRequest {
    GenerateRequest::new(caption).seed(7).prior_steps(3).decoder_steps(3)
}

#[test]
fn a_text_diff_turns_the_embedding_by_its_strength() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 120);
    let frames = pipeline.text_diff(&image, "apple", "red apple").strength(0.5).frames(4);
    let frames = frames.request(quick()).run().unwrap();
    let own = pipeline.embed_image(&image).unwrap();
    let text = |caption| pipeline.text_encoder().encode(&[caption]).unwrap().pooled;
    let unit = |x: Tensor<2>| x.clone() / x.square().sum_dim(1).sqrt();
    let direction = unit(text("red apple")) - unit(text("apple"));
    let angle = f64::from(cosines(own.clone(), direction.clone())[0]).acos();
    for (i, cosine) in cosines(embeddings(&frames), own.clone()).into_iter().enumerate() {
        let turned = f64::from(cosine).acos();
        assert!((turned - angle * 0.5 * (i + 1) as f64 / 4.0).abs() < 1e-3, "frame {i} is turned by {turned}");
    }
    let towards = cosines(embeddings(&frames), direction);
    assert!(towards.is_sorted_by(|a, b| a < b), "{towards:?}");

    let still = pipeline.text_diff(&image, "", "red apple").strength(0.0).request(quick()).run().unwrap();
    let inversion = pipeline.invert(&image).request(quick()).run().unwrap();
    assert_same(&still.images[0], &inversion.reconstruction);
}

#[test]
fn a_mix_of_one_is_that_one() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 120);
    let own = pipeline.embed_image(&image).unwrap();
    let alone = pipeline.mix([(Source::from(&image), 2.0)]).request(quick()).run().unwrap();
    assert_same(&alone.images[0], &pipeline.generate(quick().embeddings(own.clone())).unwrap().images[0]);
    let mixed = pipeline.mix([((&image).into(), 1.0), ("apple".into(), 3.0)]).request(quick()).run().unwrap();
    let apple = embeddings(&pipeline.generate(quick_caption("apple").stop_after(Stage::Prior)).unwrap());
    assert!(cosines(embeddings(&mixed), apple)[0] > cosines(embeddings(&mixed), own)[0]);
}

#[test]
fn a_generation_begins_and_ends_at_any_stage() {
    let pipeline = pipeline(&Device::flex());
    let whole = pipeline.generate(request()).unwrap();
    let prior = pipeline.generate(request().stop_after(Stage::Prior)).unwrap();
    let stages = |generation: &Generation| generation.times.iter().map(|time| time.stage).collect::<Vec<_>>();
    assert_eq!(stages(&prior), [Stage::TextEncoder, Stage::Prior]);
    let rest = pipeline.generate(request().embeddings(embeddings(&prior))).unwrap();
    assert_eq!(rest.images, whole.images);
    assert_eq!(stages(&rest), [Stage::TextEncoder, Stage::Decoder, Stage::Upsampler(0)]);

    let small = pipeline.generate(request().stop_after(Stage::Decoder)).unwrap();
    assert_eq!(small.images[0].dimensions(), (16, 16));
    assert_eq!(small.images, pipeline.generate(request().size(16)).unwrap().images);
    assert_eq!(whole.images, pipeline.generate(request().size(64)).unwrap().images);
    let large = pipeline.generate(request().low_images(small.images.clone())).unwrap();
    assert_eq!(stages(&large), [Stage::Upsampler(0)]);
    assert!(large.embeddings.is_none());
    assert_eq!(large.images[0].dimensions(), (64, 64));

    let two = pipeline.generate(request().low_images(small.images).num_images(2).batch_size(1)).unwrap();
    assert_eq!(two.images[0], large.images[0]);
    assert_ne!(two.images[1], large.images[0]);
}

#[test]
fn negative_captions_and_overrides_act_where_they_should() {
    let pipeline = pipeline(&Device::flex());
    let generate = |request: GenerateRequest| pipeline.generate(request).unwrap().images;
    let guided = || request().prior_guidance(1.0).guidance(3.0);
    assert_ne!(generate(guided()), generate(guided().negative_caption("apple")));
    let unguided = guided().guidance(1.0).negative_caption("apple");
    assert!(message(pipeline.generate(unguided)).contains("negative_caption"));
    let one = UpsamplerOptions { steps: Some(1), ..Default::default() };
    assert_eq!(generate(request().upsampler_options_of(0, one.clone())), generate(request().upsampler_steps(1)));
    let missing = message(pipeline.generate(request().upsampler_options_of(1, one)));
    assert!(missing.contains("upsampler_options_of"), "{missing}");
}

#[test]
fn cancelling_returns_after_one_evaluation_and_leaves_the_pipeline_as_it_was() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 50);
    let expected = pipeline.generate(request()).unwrap().images;
    let all = 3 * 2 + 3; // inversion, variation
    for stop in 1..=all {
        let mut calls = 0;
        let vary = pipeline.vary(&image).request(quick()).hook(|event| {
            calls += 1;
            assert_eq!(event.overall(), (calls, all));
            if calls == stop { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(vary.run(), Err(Error::Cancelled)), "stopped at {stop}");
        assert_eq!(calls, stop, "nothing runs after the hook has stopped it");
    }
    assert_eq!(pipeline.generate(request()).unwrap().images, expected);
}

#[test]
fn bad_input_is_named() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 50);
    let vary = |eta| message(pipeline.vary(&image).eta(eta).request(quick()).run());
    assert!(vary(1.5).contains("eta") && vary(f64::NAN).contains("eta"));
    let empty = message(pipeline.vary(&RgbImage::new(0, 9)).request(quick()).run());
    assert!(empty.contains("0×9"), "{empty}");
    assert!(message(pipeline.invert(&image).evaluations(0).request(quick()).run()).contains("evaluations"));

    let between = |from: Source, to: Source| pipeline.interpolate(from, to).request(quick());
    assert!(message(between((&image).into(), (&image).into()).run()).contains("same embedding"));
    let own = pipeline.embed_image(&image).unwrap();
    let opposite = between(own.clone().into(), own.clone().neg().into()).noise_path(NoisePath::Fixed);
    assert!(message(opposite.run()).contains("opposite"));
    assert!(message(between("apple".into(), (&image).into()).frames(1).run()).contains("frames"));
    let narrow = Tensor::<2>::ones([1, 3], &Device::flex());
    assert!(message(between(narrow.clone().into(), (&image).into()).run()).contains("[1, 64]"));

    let diff = |from: &str, to: &str| pipeline.text_diff(&image, from, to).request(quick());
    assert!(message(diff("", "apple").strength(-0.1).run()).contains("strength"));
    let same = message(diff("apple", "apple").run());
    assert!(same.contains("nothing to change"), "{same}");
    let long = "apple ".repeat(200);
    assert!(message(diff("", &long).run()).contains("32"));

    let mix = |sources: Vec<(Source, f64)>| message(pipeline.mix(sources).request(quick()).run());
    assert!(mix(vec![]).contains("nothing to mix"));
    assert!(mix(vec![("apple".into(), f64::NAN)]).contains("NaN"));
    assert!(mix(vec![(own.clone().into(), 1.0), (own.neg().into(), 1.0)]).contains("cancel"));

    let nan = Tensor::<2>::from_data(TensorData::new(vec![f32::NAN; 64], [1, 64]), &Device::flex());
    assert!(message(pipeline.generate(quick().embeddings(nan))).contains("not finite"));
    assert!(message(pipeline.generate(quick().embeddings(narrow))).contains("width 3"));
    assert!(message(pipeline.generate(quick().num_images(3).low_images([image.clone(), image]))).contains("2 images"));
    assert!(message(pipeline.generate(request().size(17))).contains("[16, 64]"));
    for stage in [Stage::TextEncoder, Stage::Upsampler(1), Stage::Inversion] {
        assert!(message(pipeline.generate(request().stop_after(stage))).contains("stop_after"));
    }
}

#[test]
fn without_an_image_encoder_images_cannot_be_read() {
    let device = Device::flex();
    let (config, model) = (support::clip(), support::clip_network(&device));
    let blind: Pipeline = Pipeline::builder()
        .text_encoder(dalle2::clip::ClipTextEncoder::new(config.text.clone(), &model.text).unwrap())
        .prior(support::prior(config.embed_dim(), &device))
        .decoder(support::decoder(16, &device))
        .device(&device)
        .build()
        .unwrap();
    let error = message(blind.vary(&gradient(16, 16, 1)).request(quick()).run());
    assert!(error.contains("no image encoder"), "{error}");
}

#[test]
fn components_are_added_one_after_another() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(16, 16, 50);
    let rows: Vec<f32> = (0..90 * 64).map(|i| (i as f32 * i as f32 * 0.37).sin()).collect();
    let rows = Tensor::from_data(TensorData::new(rows, [90, 64]), &Device::flex());
    let pca = EmbeddingPca::fit(rows.clone(), Components::Fixed(64)).unwrap();
    let counts = [1, 4, 16, 63, 64];
    let output = pipeline.pca_reconstructions(&image, &pca, &counts).request(quick()).run().unwrap();
    assert_eq!(output.images.len(), 5);
    let own = pipeline.embed_image(&image).unwrap();
    let missing = (embeddings(&output) - own.clone()).square().sum_dim(1);
    let missing = missing.into_data().try_to_vec::<f32>().unwrap();
    assert!(missing.is_sorted_by(|a, b| a > b), "{missing:?}");
    assert!(missing[4] < 1e-6 && missing[3] > 1e-6, "all components are the embedding itself: {missing:?}");
    // All of them start from the seed's noise, and the last one is what it gives for the embedding.
    assert_same(&output.images[4], &pipeline.generate(quick().embeddings(own)).unwrap().images[0]);
    // From the image's own noise, all components reconstruct it.
    let whole = pipeline.pca_reconstructions(&image, &pca, &[64]).start_noise(StartNoise::Inverted);
    let whole = whole.request(quick()).run().unwrap();
    let inversion = pipeline.invert(&image).request(quick()).run().unwrap();
    assert_same(&whole.images[0], &inversion.reconstruction);

    let fail = |pca: &EmbeddingPca, counts: &[usize]| {
        message(pipeline.pca_reconstructions(&image, pca, counts).request(quick()).run())
    };
    assert!(fail(&pca, &[]).contains("no number of components"));
    assert!(fail(&pca, &[3, 0]).contains("0 principal components of 64"));
    assert!(fail(&pca, &[65]).contains("65 principal components of 64"));
    let narrow = EmbeddingPca::fit(rows.slice_dim(1, 0..12), Components::Fixed(3)).unwrap();
    assert!(fail(&narrow, &[1]).contains("width 12"));
}

#[test]
fn a_cancelled_pipeline_draws_what_a_fresh_one_does() {
    let device = Device::flex();
    let dir = tempfile::tempdir().unwrap();
    pipeline(&device).save_pretrained(dir.path()).unwrap();
    let fresh = || Pipeline::from_pretrained(dir.path(), &device).unwrap();
    let expected = fresh().generate(request()).unwrap().images;
    let used = fresh();
    for stop in 1..=3 + 3 + 2 {
        let mut calls = 0;
        let stopped = used.generate_with(request().seed(99), |_| {
            calls += 1;
            if calls == stop { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(stopped, Err(Error::Cancelled)), "stopped at {stop}");
        assert_eq!(calls, stop);
        assert_eq!(used.generate(request()).unwrap().images, expected, "stopped at {stop}");
    }
}

#[test]
fn upsamplers_stop_within_one_evaluation_of_their_inversion() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(64, 64, 50);
    let count = |stop: Option<usize>| {
        let mut stages = Vec::new();
        let inversion = pipeline.invert(&image).evaluations(2).upsamplers(1).request(quick());
        let result = inversion
            .hook(|event| {
                stages.push(event.stage);
                if Some(stages.len()) == stop { Err(Error::Cancelled) } else { Ok(()) }
            })
            .run();
        (result, stages)
    };
    let (whole, stages) = count(None);
    // The decoder's inversion and reconstruction, the upsampler's inversion, and both stages of the reconstruction.
    assert_eq!(stages.len(), 3 * 2 + 3 + 2 * 2 + (3 + 2));
    let noise = whole.unwrap().upsampler_noise.remove(0).into_data();
    for stop in 1..=stages.len() {
        let (stopped, seen) = count(Some(stop));
        assert!(matches!(stopped, Err(Error::Cancelled)), "stopped at {stop}");
        assert_eq!(seen, stages[..stop]);
    }
    assert_eq!(count(None).0.unwrap().upsampler_noise.remove(0).into_data(), noise);
}

#[test]
fn an_inversion_goes_as_far_as_its_options_say() {
    let pipeline = pipeline(&Device::flex());
    for request in [quick().size(16), quick().stop_after(Stage::Decoder), quick().max_upsamplers(0).num_images(3)] {
        let image = gradient(64, 64, 9);
        let inversion = pipeline.invert(&image).evaluations(1).upsamplers(1).request(request).run().unwrap();
        assert_eq!(inversion.reconstruction.dimensions(), (64, 64));
    }
}

#[test]
fn embeddings_that_are_no_directions_are_refused_as_ends() {
    let pipeline = pipeline(&Device::flex());
    let own = pipeline.embed_image(&gradient(16, 16, 50)).unwrap();
    let to = |end: Tensor<2>| {
        message(pipeline.interpolate(own.clone(), end).frames(3).noise_path(NoisePath::Fixed).request(quick()).run())
    };
    assert!(to(own.clone() * f32::NAN).contains("not finite"));
    assert!(to(own.clone() * f32::INFINITY).contains("not finite"));
    assert!(to(own.clone() * 0.0).contains("zero"));
    assert!(to(own.clone() * 2.0).contains("same embedding"), "a length is no direction");
    assert!(to(own.clone() * -3.0).contains("opposite"));
    let nan = own.clone() * f32::NAN;
    assert!(message(pipeline.mix([(nan.into(), 1.0)]).request(quick()).run()).contains("not finite"));
}
