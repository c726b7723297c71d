//! Programs of a person who knows the README and the documentation only, on the bundled model.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use dalle2::base::image::{LabelledImage, contact_sheet, decode, encode_png, save_png};
use dalle2::image::imageops;
use dalle2::{
    BlockList, Captions, Component, Device, Error, ErrorKind, GenerateRequest, Mask, NoiseSource, Pipeline, Prior,
    PriorOptions, Result, RgbImage, Stage, StartNoise, StepHook, Tensor, TextCondition, TextEncoder, Verdict,
};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn pipeline() -> Pipeline {
    Pipeline::from_pretrained(root().join("models/emoji"), &Device::default()).unwrap()
}

fn fast(caption: &str) -> GenerateRequest {
    GenerateRequest::new(caption).prior_steps(2).decoder_steps(3).upsampler_steps(1)
}

#[test]
fn four_images_with_a_bar_and_a_cancelled_request() -> Result<()> {
    let (pipeline, dir) = (pipeline(), tempfile::tempdir().unwrap());
    let request = fast("red apple").num_images(4).seed(7).guidance(3.0);
    let mut bar = String::new();
    let generation = pipeline.generate_with(request.clone(), |event| {
        let (done, total) = event.overall();
        bar = format!("{:>14} [{:<30}] {done}/{total}", event.stage, "#".repeat(done * 30 / total));
        Ok(())
    })?;
    assert_eq!(bar, format!("   upsampler 1 [{}] 6/6", "#".repeat(30)));
    assert_eq!(generation.save_all(dir.path(), "apple")?.len(), 4);
    assert!(dir.path().join("apple-10.png").exists() && generation.times.len() == 4);

    let mut preview = None;
    let result = pipeline.generate_with(request, |event| {
        if event.stage == Stage::Decoder && event.step == 2 {
            preview = event.preview()?;
            return Err(Error::Cancelled);
        }
        Ok(())
    });
    assert!(matches!(result, Err(Error::Cancelled)) && preview.is_some_and(|images| images.len() == 4));
    Ok(())
}

#[test]
fn a_web_service_with_three_workers() -> Result<()> {
    let (pipeline, captions) = (pipeline(), ["red apple", "koala", "blue heart"]);
    let jobs: Vec<_> = captions.iter().zip(100..).map(|(caption, seed)| fast(caption).seed(seed)).collect();
    let alone = jobs.iter().map(|job| pipeline.generate(job.clone())).collect::<Result<Vec<_>>>()?;
    let (send, receive) = mpsc::channel();
    jobs.iter().cloned().enumerate().for_each(|job| send.send(job).unwrap());
    drop(send);
    let (receive, done) = (Mutex::new(receive), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                loop {
                    let Ok((id, job)) = receive.lock().unwrap().recv() else { return };
                    let generation = pipeline.generate(job);
                    done.lock().unwrap().insert(id, generation);
                }
            });
        }
    });
    for (id, generation) in done.into_inner().unwrap() {
        assert_eq!(generation?.images, alone[id].images, "{}", captions[id]);
    }
    // Or in one batch: the same images up to rounding.
    for (alone, many) in alone.iter().zip(pipeline.generate_many(&jobs, |_| Ok(()))?) {
        assert_eq!((&alone.seeds, alone.images[0].dimensions()), (&many.seeds, many.images[0].dimensions()));
    }
    Ok(())
}

#[test]
fn an_upload_is_inpainted_at_its_own_size() -> Result<()> {
    let apple = decode(&std::fs::read(root().join("docs/images/red-apple.png")).unwrap(), "upload")?;
    let photo = imageops::resize(&apple, 320, 240, imageops::FilterType::Triangle);
    let upload = encode_png(&photo)?;

    let photo = decode(&upload, "upload")?;
    let (width, height) = photo.dimensions();
    let mask = Mask::edit_rect([width, height], [width / 2, 40], [100, 120]);
    let pipeline = pipeline();
    let inpaint = || pipeline.inpaint(&photo, &mask).caption("green apple").seed(3).decoder_steps(4);
    assert_eq!(inpaint().run()?.images[0].dimensions(), (128, 128));
    let fill = inpaint().at_photo_size().run()?.images.remove(0);
    assert_eq!(fill.dimensions(), (320, 240));
    assert!(fill.enumerate_pixels().all(|(x, y, pixel)| mask.edits(x, y) || pixel == photo.get_pixel(x, y)));
    assert!(encode_png(&fill)?.starts_with(b"\x89PNG"));
    Ok(())
}

#[test]
fn variations_and_a_film() -> Result<()> {
    let (pipeline, dir) = (pipeline(), tempfile::tempdir().unwrap());
    let image = |caption| pipeline.generate(fast(caption).seed(1)).map(|generation| generation.images[0].clone());
    let (heart, koala) = (image("red heart")?, image("koala")?);
    let near = pipeline.vary(&heart).eta(0.3).seed(7).num_images(2).decoder_steps(4).run()?;
    let far = pipeline.vary(&heart).start_noise(StartNoise::Random).caption("red heart").decoder_steps(4).run()?;
    let film = pipeline.interpolate(&heart, &koala).frames(3).seed(7).decoder_steps(4).run()?;
    let rows = [("near", near), ("far", far), ("film", film)].map(|(label, generation)| {
        generation.images.into_iter().map(|image| LabelledImage::new(image, label)).collect::<Vec<_>>()
    });
    assert_eq!(rows.each_ref().map(Vec::len), [2, 1, 3]);
    save_png(&contact_sheet(&rows, 128), dir.path().join("sheet.png"))
}

/// The caption's embedding, scaled.
#[derive(Debug)]
struct ScaledText<E> {
    scale: f64,
    text: E,
}

impl<E> Component for ScaledText<E> {
    fn class_name(&self) -> &str {
        "ScaledText"
    }
}

impl<E: TextEncoder> Prior for ScaledText<E> {
    fn sample(
        &self,
        captions: Captions<'_>,
        _: &PriorOptions,
        _: &mut dyn NoiseSource,
        _: StepHook<'_>,
    ) -> Result<Tensor<2>> {
        Ok(captions.text.pooled.clone() * self.scale)
    }
    fn embed_dim(&self) -> usize {
        self.text.embed_dim()
    }
    fn token_width(&self) -> usize {
        self.text.token_width()
    }
    fn context_length(&self) -> usize {
        self.text.context_length()
    }
}

#[test]
fn a_prior_of_ones_own() -> Result<()> {
    let stock = pipeline();
    let prior = ScaledText { scale: 1.3, text: stock.text_encoder().clone() };
    let pipeline = stock.to_builder().prior(prior).build()?;
    let generation =
        pipeline.generate(GenerateRequest::new("red apple").seed(1).decoder_steps(3).upsampler_steps(1))?;
    let expected = stock.embed_text("red apple")? * 1.3;
    assert_eq!(generation.embeddings.unwrap().dims(), expected.dims());
    // A prior can be chosen at run time.
    let chosen: Box<dyn Prior> = Box::new(ScaledText { scale: 1.0, text: stock.text_encoder().clone() });
    stock.to_builder().prior(chosen).build()?.validate(&fast("koala"))
}

/// Translates before it encodes.
#[derive(Debug)]
struct German<E>(E, HashMap<&'static str, &'static str>);

impl<E: Component> Component for German<E> {
    fn class_name(&self) -> &str {
        self.0.class_name()
    }
}

impl<E: TextEncoder> TextEncoder for German<E> {
    fn encode(&self, captions: &[&str]) -> Result<TextCondition> {
        let translate = |caption: &&str| {
            let words = caption.split(' ').map(|word| *self.1.get(word).unwrap_or(&word));
            words.collect::<Vec<_>>().join(" ")
        };
        let english: Vec<String> = captions.iter().map(translate).collect();
        self.0.encode(&english.iter().map(String::as_str).collect::<Vec<_>>())
    }
    fn embed_dim(&self) -> usize {
        self.0.embed_dim()
    }
    fn token_width(&self) -> usize {
        self.0.token_width()
    }
    fn context_length(&self) -> usize {
        self.0.context_length()
    }
}

#[test]
fn a_filter_and_a_translating_text_encoder() -> Result<()> {
    let (stock, calls) = (pipeline(), Arc::new(AtomicUsize::new(0)));
    let words = HashMap::from([("roter", "red"), ("Apfel", "apple")]);
    let german = stock.to_builder().text_encoder(German(stock.text_encoder().clone(), words)).build()?;
    let counter = calls.clone();
    let pipeline = german.with_prompt_filter(move |caption: &str| {
        counter.fetch_add(1, Ordering::Relaxed);
        Ok(if caption.contains('!') { Verdict::Refuse("please do not shout".into()) } else { Verdict::Allow })
    });
    let images = pipeline.generate(fast("roter Apfel").seed(1))?.images;
    assert_eq!(images, stock.generate(fast("red apple").seed(1))?.images);
    let negative = fast("roter Apfel").guidance(2.0).negative_caption("Schrei!");
    let mask = Mask::edit_where(128, 128, |x, _| x > 3);
    for result in [
        pipeline.validate(&fast("roter Apfel!")),
        pipeline.generate(negative).map(drop),
        pipeline.mix([("Schrei!".into(), 1.0)]).run().map(drop),
        pipeline.interpolate("a!", "b").run().map(drop),
        pipeline.text_diff(&images[0], "a!", "b").run().map(drop),
        pipeline.inpaint(&images[0], &mask).caption("x!").run().map(drop),
    ] {
        assert!(matches!(result, Err(Error::Refused(reason)) if reason == "please do not shout"));
    }
    assert_eq!(calls.load(Ordering::Relaxed), 9);
    Ok(())
}

/// The HTTP status of an error.
fn status(error: &Error) -> u16 {
    match error.kind() {
        ErrorKind::Request | ErrorKind::Upload => 422,
        ErrorKind::Refused => 403,
        ErrorKind::NotFound => 404,
        ErrorKind::Cancelled => 499,
        ErrorKind::Device => 503,
        _ => 500,
    }
}

#[test]
fn errors_can_be_told_apart() -> Result<()> {
    let (pipeline, device) = (pipeline(), Device::default());
    let load = |dir: &str| Pipeline::from_pretrained(root().join(dir), &device).map(drop).unwrap_err();
    for (dir, exists) in [("nowhere", false), ("models", true), ("README.md", true), ("models/emoji/prior", true)] {
        let error = load(dir);
        assert!(matches!(error, Error::NotAPipeline { exists: found, .. } if found == exists), "{error}");
        assert_eq!(status(&error), 404);
    }
    let apple = std::fs::read(root().join("docs/images/red-apple.png")).unwrap();
    assert_eq!(status(&decode(&apple[..300], "upload.png").unwrap_err()), 422);
    assert_eq!(status(&dalle2::device("gpu").unwrap_err()), 422);

    let long = "apple ".repeat(500);
    let too_long = pipeline.validate(&fast(&long)).unwrap_err();
    assert!(matches!(too_long, Error::CaptionTooLong { tokens: 502, limit: 32, .. }), "{too_long}");
    pipeline.validate(&fast(&pipeline.truncate_caption(&long)?))?;
    let steps = pipeline.generate(fast("apple").decoder_steps(0)).unwrap_err();
    let Error::Config(steps) = steps else { panic!("{steps}") };
    assert_eq!((steps.setter().as_str(), steps.expected.as_str()), ("decoder_steps", "between 1 and 1000"));

    let image = RgbImage::new(128, 128);
    let small = Mask::edit_where(64, 64, |x, _| x < 32);
    let mask = pipeline.inpaint(&image, &small).run().unwrap_err();
    assert!(matches!(mask, Error::MaskSize { mask: [64, 64], image: [128, 128] }), "{mask}");
    for request in [
        fast(&long),
        fast("apple").guidance(2.0).negative_caption(long.as_str()),
        fast(" \n"),
        fast("apple").decoder_steps(5000),
        fast("apple").num_images(1_000_000_000),
        fast("apple").batch_size(0),
        fast("apple").guidance(f64::NAN),
        fast("apple").size(100),
        fast("apple").prior_temperature(0.5),
        fast("apple").seed(u64::MAX).num_images(2),
        fast("apple").max_upsamplers(9),
        fast("apple").guidance(1.0).prior_guidance(1.0).negative_caption("red"),
        fast("").embeddings(Tensor::zeros([1, 7], &device)),
        fast("").embeddings(Tensor::zeros([1, pipeline.decoder().embed_dim()], &device)),
    ] {
        let error = pipeline.validate(&request).unwrap_err();
        assert_eq!(status(&error), 422, "{error}");
    }
    let refusing = pipeline.clone().with_prompt_filter(BlockList::new(["axe"])?);
    assert_eq!(status(&refusing.generate("an axe").unwrap_err()), 403);
    assert_eq!(status(&Pipeline::builder().build().unwrap_err()), 500);
    Ok(())
}
