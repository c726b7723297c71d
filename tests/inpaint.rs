//! Inpainting and outpainting through the whole pipeline, with small random parts.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::path::Path;

use burn::module::Module;
use burn::tensor::Tensor;
use dalle2::base::diffusion::{Resampling, Sampler};
use dalle2::base::image::{Mask, fit_square, open};
use dalle2::clip::{ClipImageEncoder, ClipTextEncoder};
use dalle2::decoder::{DecoderConfig, DiffusionUpsampler, UnclipDecoder, UpsamplerConfig};
use dalle2::{
    Borders, Canvas, Device, DiffusionOptions, Error, GenerateRequest, Generation, Pipeline, RgbImage, Stage,
};

use support::{Randomise, clip, gradient, pipeline, request};

/// Two rounds, so that resampling takes effect.
const TWICE: Resampling = Resampling { rounds: 2, jump: 1 };

fn disc(size: u32) -> Mask {
    let middle = f64::from(size) / 2.0;
    let square = |at: u32| (f64::from(at) + 0.5 - middle).powi(2);
    Mask::edit_where(size, size, move |x, y| square(x) + square(y) < (0.3 * f64::from(size)).powi(2))
}

/// Kept pixels of `output` that are not those of `image`, and edited ones that are not.
fn changed(output: &RgbImage, image: &RgbImage, mask: &Mask) -> [usize; 2] {
    assert_eq!(output.dimensions(), image.dimensions());
    let mut changed = [0; 2];
    for (x, y, pixel) in output.enumerate_pixels() {
        changed[usize::from(mask.edits(x, y))] += usize::from(pixel != image.get_pixel(x, y));
    }
    changed
}

fn message(result: Result<Generation, Error>) -> String {
    result.unwrap_err().to_string()
}

/// The same parts with channels for known pixels in decoder and upsampler.
fn pipeline_that_reads_masks(device: &Device) -> Pipeline {
    let (config, model) = (clip(), support::clip_network(device));
    let like = support::decoder(16, device).config().clone();
    let decoder = DecoderConfig { image_size: 16, ..like }.with_inpainting();
    let upsampler = support::upsampler(16, device).config().clone();
    let upsampler = UpsamplerConfig { input_size: 16, ..upsampler }.with_inpainting();
    let (network, unet) = (decoder.init(device).map(&mut Randomise::new(1)), upsampler.init(device));
    Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(config.text.clone(), &model.text).unwrap())
        .image_encoder(ClipImageEncoder::new(config.vision.clone(), &model.vision).unwrap())
        .prior(support::prior(config.embed_dim(), device))
        .decoder(UnclipDecoder::new(decoder, network).unwrap())
        .upsampler(DiffusionUpsampler::new(upsampler, unet.map(&mut Randomise::new(2))).unwrap())
        .device(device)
        .build()
        .unwrap()
}

#[test]
fn known_pixels_stay_as_they_were_with_either_kind_of_network() {
    let device = Device::flex();
    for pipeline in [pipeline(&device), pipeline_that_reads_masks(&device)] {
        let (image, mask) = (gradient(64, 64, 90), disc(64));
        let fills = pipeline
            .inpaint(&image, &mask)
            .resampling(TWICE)
            .request(request().num_images(2).batch_size(1))
            .run()
            .unwrap();
        assert_eq!(fills.images.len(), 2);
        for fill in &fills.images {
            let [unedited, edited] = changed(fill, &image, &mask);
            assert_eq!(unedited, 0);
            assert!(edited > 100, "{edited} pixels were output");
        }
        assert!(changed(&fills.images[0], &fills.images[1], &mask)[1] > 100, "another seed gives another fill");
        let again = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request()).run().unwrap();
        assert_eq!(again.images[0], fills.images[0]);

        // Without the upsampler it is the small image that stays; near the hole it is not a plain reduction of the large one.
        let small = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request().size(16)).run().unwrap();
        let near = Mask::edit_where(64, 64, |x, y| {
            let around = |at: u32| at.saturating_sub(8)..(at + 9).min(64);
            around(x).any(|x| around(y).any(|y| mask.edits(x, y)))
        });
        let [unedited, edited] = changed(&small.images[0], &fit_square(&image, 16), &near.resized([16, 16]).unwrap());
        assert!(near.edited_share() < 0.8 && unedited == 0 && edited > 10, "{unedited} {edited}");
    }
}

#[test]
fn what_the_hole_shows_does_not_matter() {
    let pipeline = pipeline(&Device::flex());
    let mask = disc(40);
    let image = gradient(40, 40, 90);
    let mut other = image.clone();
    for (x, y, pixel) in other.enumerate_pixels_mut() {
        if mask.edits(x, y) {
            *pixel = image::Rgb([255, 0, (x * y) as u8]);
        }
    }
    let fill = |image: &RgbImage, request: GenerateRequest| {
        pipeline.inpaint(image, &mask).request(request).run().unwrap().images
    };
    assert_eq!(fill(&image, request()), fill(&other, request()));
    assert_ne!(fill(&image, request().num_images(1)), fill(&gradient(40, 40, 10), request()), "but the rest does");
    // Without a caption the embedding is that of the image, hole and all.
    assert_ne!(fill(&image, request_without_caption()), fill(&other, request_without_caption()));
}

fn request_without_caption() -> GenerateRequest {
    GenerateRequest::default().seed(7).decoder_steps(3).upsampler_steps(2)
}

#[test]
fn a_caption_is_drawn_by_the_prior_and_without_one_the_image_is_embedded() {
    let pipeline = pipeline(&Device::flex());
    let (image, mask) = (gradient(30, 20, 90), Mask::edit_where(30, 20, |x, _| x < 15));
    let embedding = |request: GenerateRequest| {
        let output = pipeline.inpaint(&image, &mask).request(request).run().unwrap();
        let stages: Vec<Stage> = output.times.iter().map(|time| time.stage).collect();
        (output.embeddings.unwrap().into_data(), stages)
    };
    let rest = [Stage::Decoder, Stage::Upsampler(0)];
    let (output, stages) = embedding(request());
    let prior = pipeline.generate(request().stop_after(Stage::Prior)).unwrap();
    assert_eq!(output, prior.embeddings.clone().unwrap().into_data());
    assert_eq!(stages, [&[Stage::TextEncoder, Stage::Prior], &rest[..]].concat());
    let (own, stages) = embedding(request_without_caption());
    assert_eq!(own, pipeline.embed_image(&image).unwrap().into_data());
    assert_eq!(stages, [&[Stage::TextEncoder, Stage::ImageEncoder], &rest[..]].concat());
    let (given, stages) = embedding(request().embeddings(prior.embeddings.unwrap()));
    assert_eq!((given, stages), (output, [&[Stage::TextEncoder], &rest[..]].concat()));
}

#[test]
fn a_mask_that_keeps_nothing_leaves_a_plain_generation() {
    let pipeline = pipeline(&Device::flex());
    let everything = Mask::edit_where(9, 9, |_, _| true);
    let once = Resampling { rounds: 1, jump: 1 };
    let still = |steps| DiffusionOptions {
        steps: Some(steps),
        sampler: Some(Sampler::Ddim { eta: 0.0 }),
        ..Default::default()
    };
    let request = || request().decoder_options(still(3)).upsampler_options(still(2).into());
    let filled = pipeline.inpaint(&gradient(9, 9, 3), &everything).resampling(once).request(request()).run().unwrap();
    assert_eq!(filled.images, pipeline.generate(request()).unwrap().images);
}

#[test]
fn outpainting_is_inpainting_on_a_larger_canvas() {
    let pipeline = pipeline(&Device::flex());
    let image = gradient(32, 32, 200);
    let borders = Borders { left: 8, top: 32, right: 24, bottom: 0 };
    let output = pipeline.outpaint(&image, borders).resampling(TWICE).request(request()).run().unwrap();
    let canvas = Canvas::extended(&image, borders).unwrap();
    assert_eq!(
        output.images,
        pipeline.inpaint(&canvas.image, &canvas.mask).resampling(TWICE).request(request()).run().unwrap().images
    );
    for (x, y, pixel) in image.enumerate_pixels() {
        assert_eq!(output.images[0].get_pixel(x + 8, y + 32), pixel);
    }
    // Without a caption it is the image that is embedded, not its canvas.
    let output = pipeline.outpaint(&image, borders).request(request_without_caption()).run().unwrap();
    assert_eq!(output.embeddings.unwrap().into_data(), pipeline.embed_image(&image).unwrap().into_data());

    let oblong = Borders { left: 1, ..Default::default() };
    let oblong = message(pipeline.outpaint(&image, oblong).request(request()).run());
    assert!(oblong.contains("33×32") && oblong.contains("square"), "{oblong}");
    let none = message(pipeline.outpaint(&image, Borders::default()).request(request()).run());
    assert!(none.contains("nothing to fill"), "{none}");
}

#[test]
fn an_inpainting_begins_and_ends_at_any_stage() {
    let pipeline = pipeline(&Device::flex());
    let (image, mask) = (gradient(64, 64, 90), disc(64));
    let generate =
        |request: GenerateRequest| pipeline.inpaint(&image, &mask).resampling(TWICE).request(request).run().unwrap();
    let whole = generate(request());
    let small = generate(request().stop_after(Stage::Decoder));
    assert_eq!(small.images[0].dimensions(), (16, 16));
    assert_eq!(small.images, generate(request().max_upsamplers(0)).images);
    let prior = generate(request().stop_after(Stage::Prior));
    assert!(prior.images.is_empty() && prior.embeddings.is_some());
    assert_eq!(generate(request().embeddings(prior.embeddings.unwrap())).images, whole.images);
    let large = generate(request().low_images(small.images.clone()));
    assert_eq!(large.times.iter().map(|time| time.stage).collect::<Vec<_>>(), [Stage::Upsampler(0)]);
    assert_eq!(changed(&large.images[0], &image, &mask)[0], 0);
    // The small image passes through bytes on its way, which an upsampler hardly sees.
    let most = large.images[0].as_raw().iter().zip(whole.images[0].as_raw()).map(|(a, b)| a.abs_diff(*b)).max();
    assert!(most.unwrap() < 32, "{most:?}");
    let oblong =
        pipeline.inpaint(&image, &mask).resampling(TWICE).request(request().low_images([gradient(16, 32, 1)])).run();
    assert!(message(oblong).contains("16×32"));
}

#[test]
fn cancelling_stops_within_the_rounds_and_leaves_the_pipeline_as_it_was() {
    let pipeline = pipeline(&Device::flex());
    let (image, mask) = (gradient(64, 64, 90), disc(64));
    let expected = pipeline.generate(request()).unwrap().images;
    let evaluations = TWICE.evaluations(3);
    assert!(evaluations > 3, "a stretch is gone through twice");
    let all = 3 + evaluations + 2; // prior, decoder, upsampler
    for stop in 1..=all {
        let mut calls = 0;
        let inpaint = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request()).hook(|event| {
            calls += 1;
            assert_eq!(event.overall(), (calls, all));
            assert_eq!(event.preview().unwrap().is_some(), event.stage != Stage::Prior);
            if calls == stop { Err(Error::Cancelled) } else { Ok(()) }
        });
        assert!(matches!(inpaint.run(), Err(Error::Cancelled)), "stopped at {stop}");
        assert_eq!(calls, stop, "nothing runs after the hook has stopped it");
    }
    assert_eq!(pipeline.generate(request()).unwrap().images, expected);
    let mut calls = 0;
    let inpaint = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request()).hook(|_| {
        calls += 1;
        Ok(())
    });
    inpaint.run().unwrap();
    assert_eq!(calls, all);
}

#[test]
fn previews_show_the_known_part_in_place() {
    let pipeline = pipeline(&Device::flex());
    let (image, mask) = (gradient(64, 64, 90), disc(64));
    let mut seen = 0;
    let inpaint = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request()).hook(|event| {
        if event.stage == Stage::Upsampler(0) {
            let preview = event.preview().unwrap().unwrap().remove(0);
            assert_eq!(changed(&preview, &image, &mask)[0], 0);
            seen += 1;
        }
        Ok(())
    });
    inpaint.run().unwrap();
    assert_eq!(seen, 2);
}

#[test]
fn images_of_any_mode_and_size_are_filled() {
    let pipeline = pipeline(&Device::flex());
    let dir = tempfile::tempdir().unwrap();
    let quick = || request().prior_steps(1).decoder_steps(1).upsampler_steps(1);
    let rgba = image::RgbaImage::from_fn(20, 31, |x, y| image::Rgba([x as u8 * 9, y as u8, 7, (x * 12) as u8]));
    let deep = image::ImageBuffer::from_fn(33, 12, |x, y| image::Rgb([x as u16 * 1800, y as u16 * 900, 5u16]));
    let grey = image::GrayImage::from_fn(9, 9, |x, y| image::Luma([(x * y) as u8]));
    let one = RgbImage::from_pixel(1, 1, image::Rgb([1, 2, 3]));
    rgba.save(dir.path().join("rgba.png")).unwrap();
    deep.save(dir.path().join("deep.png")).unwrap();
    grey.save(dir.path().join("grey.png")).unwrap();
    one.save(dir.path().join("one.png")).unwrap();
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("dalle2-core/tests/fixtures/images");
    let written = ["rgba.png", "deep.png", "grey.png", "one.png"].map(|name| dir.path().join(name));
    let found = ["cmyk.jpg", "palette_alpha.png", "lossy.webp"].map(|name| fixtures.join(name));
    for file in written.into_iter().chain(found) {
        let name = file.display();
        let image = open(&file).unwrap();
        let (w, h) = image.dimensions();
        // The right half of the middle square, or the single pixel.
        let mask = Mask::edit_where(w, h, |x, _| x >= w / 2);
        let filled = pipeline.inpaint(&image, &mask).request(quick()).run().unwrap().images.remove(0);
        assert_eq!(filled.dimensions(), (64, 64), "{name}");
        if w > 1 {
            let unedited = fit_square(&image, 64).get_pixel(0, 32).0;
            assert_eq!(filled.get_pixel(0, 32).0, unedited, "{name}");
        }
    }
}

#[test]
fn bad_input_is_named() {
    let pipeline = pipeline(&Device::flex());
    let (image, mask) = (gradient(20, 30, 90), Mask::edit_where(20, 30, |_, y| y > 10));
    let fill = |image: &RgbImage, mask: &Mask| message(pipeline.inpaint(image, mask).request(request()).run());
    let size = pipeline.inpaint(&image, &Mask::edit_where(30, 20, |_, _| true)).request(request()).run().unwrap_err();
    assert!(matches!(size, Error::MaskSize { mask: [30, 20], image: [20, 30] }), "{size}");
    for nothing in [Mask::edit_where(20, 30, |_, _| false), Mask::edit_where(20, 30, |_, y| !(5..25).contains(&y))] {
        let error = fill(&image, &nothing);
        assert!(error.contains("nothing to fill"), "{error}");
    }
    let empty = fill(&RgbImage::new(0, 4), &Mask::edit_where(0, 4, |_, _| true));
    assert!(empty.contains("0×4"), "{empty}");
    let inpaint = || pipeline.inpaint(&image, &mask).request(request());
    let never = |rounds, jump| Resampling { rounds, jump };
    assert!(message(inpaint().resampling(never(0, 1)).run()).contains("resampling.rounds"));
    assert!(message(inpaint().upsampler_resampling(never(1, 0)).run()).contains("upsampler.resampling.jump"));

    let with = |request: GenerateRequest| message(inpaint().request(request).run());
    let solver = DiffusionOptions { sampler: Some(Sampler::DpmSolver2m), ..Default::default() };
    let error = with(request().decoder_options(solver.clone()));
    assert!(error.contains("decoder.sampler") && error.contains("ddim"), "{error}");
    let error = with(request().upsampler_options_of(0, solver.into()));
    assert!(error.contains("upsampler.sampler"), "{error}");
    assert!(with(request().decoder_steps(0)).contains("decoder.steps"));
    assert!(with(request().embeddings(Tensor::ones([1, 3], &Device::flex()))).contains("width 3"));
    assert!(with(request().embeddings(Tensor::full([1, 64], f32::NAN, &Device::flex()))).contains("not finite"));
}

#[test]
fn a_photo_keeps_its_size_and_its_unedited_pixels() {
    let pipeline = pipeline(&Device::flex());
    let photo = gradient(90, 40, 90);
    for mask in [Mask::edit_rect([90, 40], [70, 5], [12, 20]), Mask::edit_where(90, 40, |x, y| x > 3 && y > 30)] {
        let fills = pipeline.inpaint(&photo, &mask).at_photo_size().request(request().num_images(2)).run().unwrap();
        for fill in &fills.images {
            let [unedited, edited] = changed(fill, &photo, &mask);
            assert!(unedited == 0 && edited > 100, "{unedited} unedited pixels changed, {edited} edited ones");
        }
    }
}

#[test]
fn a_model_whose_own_sampler_cannot_inpaint_draws_with_another() {
    let device = Device::flex();
    let like = support::decoder(16, &device);
    let mut config = like.config().clone();
    config.diffusion.sampler = Sampler::DpmSolver2m;
    let (clip_config, model) = (clip(), support::clip_network(&device));
    let pipeline = Pipeline::builder()
        .text_encoder(ClipTextEncoder::new(clip_config.text.clone(), &model.text).unwrap())
        .prior(support::prior(clip_config.embed_dim(), &device))
        .decoder(UnclipDecoder::new(config, like.network().unwrap()).unwrap())
        .device(&device)
        .build()
        .unwrap();
    let (image, mask) = (gradient(16, 16, 90), disc(16));
    let output = pipeline.inpaint(&image, &mask).resampling(TWICE).request(request()).run().unwrap();
    assert_eq!(changed(&output.images[0], &image, &mask)[0], 0);
    let blind = message(pipeline.inpaint(&image, &mask).request(request_without_caption()).run());
    assert!(blind.contains("need an image encoder"), "{blind}");
}
