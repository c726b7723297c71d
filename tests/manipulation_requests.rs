//! Every setting of a request, on every operation.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::cell::RefCell;
use std::rc::Rc;

use burn::tensor::{Distribution, Tensor};
use dalle2::NoiseSource;
use dalle2::base::diffusion::{RecordedNoise, Resampling, SeededNoise};
use dalle2::base::image::Mask;
use dalle2::base::{Components, EmbeddingPca, UpsamplerOptions};
use dalle2::{
    Borders, Controls, Device, Error, GenerateRequest, Generation, NoisePath, Pipeline, RgbImage, Stage, StartNoise,
};

use support::{gradient, pipeline};

type Run = Box<dyn for<'a> Fn(&'a Pipeline, GenerateRequest, Controls<'a>) -> Result<Generation, Error> + Sync>;

/// Every operation that samples, each with a name.
fn manipulations() -> Vec<(&'static str, Run)> {
    let rounds = Resampling { rounds: 2, jump: 1 };
    let image = || gradient(20, 20, 40);
    let mut all: Vec<(&'static str, Run)> = Vec::new();
    for (name, start) in [("variations", StartNoise::Inverted), ("random variations", StartNoise::Random)] {
        all.push((
            name,
            Box::new(move |p, r, c| p.vary(&image()).start_noise(start).evaluations(1).request(r).controls(c).run()),
        ));
    }
    let mask = Mask::edit_where(20, 20, |x, _| x < 10);
    all.push((
        "inpaint",
        Box::new(move |p, r, c| p.inpaint(&image(), &mask).resampling(rounds).request(r).controls(c).run()),
    ));
    all.push((
        "outpaint",
        Box::new(move |p, r, c| p.outpaint(&image(), Borders::all(6)).resampling(rounds).request(r).controls(c).run()),
    ));
    all.push((
        "mix",
        Box::new(move |p, r, c| p.mix([(image().into(), 1.0), ("apple".into(), 0.5)]).request(r).controls(c).run()),
    ));
    for (name, noise) in [("interpolate", NoisePath::Inverted), ("interpolate, fixed noise", NoisePath::Fixed)] {
        all.push((
            name,
            Box::new(move |p, r, c| {
                let frames = p.interpolate(image(), "apple").frames(3).noise_path(noise).evaluations(1);
                frames.request(r).controls(c).run()
            }),
        ));
    }
    all.push((
        "text_diff",
        Box::new(move |p, r, c| {
            let frames = p.text_diff(&image(), "apple", "red apple").strength(0.5).frames(2).evaluations(1);
            frames.request(r).controls(c).run()
        }),
    ));
    for (name, start) in [("pca", StartNoise::Random), ("pca, own noise", StartNoise::Inverted)] {
        all.push((
            name,
            Box::new(move |p, r, c| {
                let images = p.pca_reconstructions(&image(), &pca(), &[1, 5, 9]).start_noise(start).evaluations(1);
                images.request(r).controls(c).run()
            }),
        ));
    }
    all
}

/// Components of embeddings that are always the same.
fn pca() -> EmbeddingPca {
    let values: Vec<f32> = (0..20 * 64).map(|i| (i as f32 * i as f32 * 0.37).sin()).collect();
    let embeddings = Tensor::<1>::from_floats(values.as_slice(), &Device::flex()).reshape([20, 64]);
    EmbeddingPca::fit(embeddings, Components::Fixed(10)).unwrap()
}

fn quick() -> GenerateRequest {
    GenerateRequest::default().seed(7).prior_steps(2).decoder_steps(2).upsampler_steps(2)
}

/// Runs an operation and records its events.
fn watch(
    run: &Run,
    pipeline: &Pipeline,
    request: GenerateRequest,
    stop_at: Option<usize>,
) -> (Result<Generation, Error>, Vec<(Stage, usize)>) {
    let mut events = Vec::new();
    let controls = Controls::new().hook(|event| {
        assert_eq!(event.preview().unwrap().is_some(), event.stage != Stage::Prior, "{}", event.stage);
        events.push((event.stage, event.total));
        if Some(events.len()) == stop_at { Err(Error::Cancelled) } else { Ok(()) }
    });
    let output = run(pipeline, request, controls);
    (output, events)
}

fn generate(run: &Run, pipeline: &Pipeline, request: GenerateRequest) -> Vec<RgbImage> {
    watch(run, pipeline, request, None).0.unwrap().images
}

#[test]
fn a_seed_gives_the_same_images_and_another_one_others() {
    let pipeline = pipeline(&Device::flex());
    for (name, run) in manipulations() {
        let images = generate(&run, &pipeline, quick());
        assert!(images.iter().all(|image| image.dimensions() == (64, 64)), "{name}");
        assert_eq!(images, generate(&run, &pipeline, quick()), "{name}");
        assert_ne!(images, generate(&run, &pipeline, quick().seed(8)), "{name}");
    }
}

#[test]
fn a_manipulation_stops_at_any_evaluation_and_leaves_the_pipeline_as_it_was() {
    let pipeline = pipeline(&Device::flex());
    for (name, run) in manipulations() {
        let (whole, events) = watch(&run, &pipeline, quick(), None);
        let images = whole.unwrap().images;
        assert!(events.len() >= 4, "{name}: {events:?}");
        for stop in 1..=events.len() {
            let (stopped, seen) = watch(&run, &pipeline, quick(), Some(stop));
            assert!(matches!(stopped, Err(Error::Cancelled)), "{name}, stopped at {stop}");
            assert_eq!(seen, events[..stop], "{name}: nothing runs after the hook has stopped it");
        }
        assert_eq!(images, generate(&run, &pipeline, quick()), "{name}");
    }
}

#[test]
fn threads_share_a_pipeline() {
    let pipeline = pipeline(&Device::flex());
    let all = manipulations();
    let alone: Vec<_> = all.iter().map(|(_, run)| generate(run, &pipeline, quick())).collect();
    let together: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = all
            .iter()
            .map(|(_, run)| {
                let pipeline = &pipeline;
                scope.spawn(move || generate(run, pipeline, quick()))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for (i, (name, _)) in all.iter().enumerate() {
        assert_eq!(alone[i], together[i], "{name}");
    }
}

/// Notes all noise that another source gives.
struct Recorder(Rc<RefCell<RecordedNoise>>, SeededNoise);

impl NoiseSource for Recorder {
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>, Error> {
        let values = self.1.normal(shape)?;
        self.0.borrow_mut().push(shape, values.clone())?;
        Ok(values)
    }
}

/// Gives what was noted, whatever the stage.
struct Replay(Rc<RefCell<RecordedNoise>>);

impl NoiseSource for Replay {
    fn normal(&mut self, shape: &[usize]) -> Result<Vec<f32>, Error> {
        self.0.borrow_mut().normal(shape)
    }
}

#[test]
fn recorded_noise_takes_the_place_of_a_seed() {
    let pipeline = pipeline(&Device::flex());
    for (name, run) in manipulations() {
        let tape = Rc::new(RefCell::new(RecordedNoise::new()));
        let mut stages = Vec::new();
        let controls = Controls::new().noise(|stage, seeds| {
            stages.push(stage);
            Box::new(Recorder(tape.clone(), SeededNoise::new(seeds, stages.len() as u64)))
        });
        let recorded = run(&pipeline, quick(), controls).unwrap().images;
        assert!(stages.contains(&Stage::Decoder) && stages.contains(&Stage::Upsampler(0)), "{name}: {stages:?}");
        assert!(tape.borrow().remaining() > 0, "{name}");
        let controls = Controls::new().noise(|_, _| Box::new(Replay(tape.clone())));
        let replayed = run(&pipeline, quick().seed(1234), controls).unwrap().images;
        assert_eq!(recorded, replayed, "{name}");
        assert_eq!(tape.borrow().remaining(), 0, "{name}: all of it is used");
        let controls = Controls::new().noise(|_, _| Box::new(Replay(tape.clone())));
        let ended = run(&pipeline, quick(), controls).unwrap_err().to_string();
        assert!(ended.contains("recorded noise ends"), "{name}: {ended}");
    }
}

#[test]
fn overrides_reach_their_stage() {
    let pipeline = pipeline(&Device::flex());
    let one = UpsamplerOptions { steps: Some(1), ..Default::default() };
    for (name, run) in manipulations() {
        let request = quick().upsampler_options_of(0, one.clone()).decoder_steps(3);
        let (output, events) = watch(&run, &pipeline, request, None);
        output.unwrap();
        let totals = |wanted: Stage| -> Vec<usize> {
            let mut totals: Vec<usize> =
                events.iter().filter(|(stage, _)| *stage == wanted).map(|(_, total)| *total).collect();
            totals.dedup();
            totals
        };
        assert_eq!(totals(Stage::Upsampler(0)), [1], "{name}");
        // With two rounds over stretches of one step, the two inner steps are taken twice.
        let steps = if name.contains("paint") { 5 } else { 3 };
        assert_eq!(totals(Stage::Decoder), [steps], "{name}");
        for (bad, part) in [
            (quick().decoder_steps(0), "decoder.steps"),
            (quick().upsampler_steps(0), "upsampler.steps"),
            (quick().guidance(f64::NAN), "decoder.guidance"),
            (quick().upsampler_options_of(1, one.clone()), "upsampler_options_of"),
            (quick().size(17), "size"),
        ] {
            let message = watch(&run, &pipeline, bad, None).0.unwrap_err().to_string();
            assert!(message.contains(part), "{name}: {message}");
        }
    }
}

#[test]
fn negative_captions_act_where_there_is_guidance() {
    let pipeline = pipeline(&Device::flex());
    for (name, run) in manipulations() {
        let small = || quick().max_upsamplers(0);
        let against = |request: GenerateRequest| generate(&run, &pipeline, request.negative_caption("red"));
        // Random parts hear a caption faintly: much guidance makes it plain in eight bits.
        let guided = || small().guidance(50.0);
        assert_ne!(generate(&run, &pipeline, guided()), against(guided()), "{name}");
        let unguided = small().guidance(1.0).prior_guidance(1.0).negative_caption("red");
        let refused = watch(&run, &pipeline, unguided, None).0.unwrap_err().to_string();
        assert!(refused.contains("negative_caption"), "{name}: {refused}");
    }
}

#[test]
fn a_manipulation_ends_at_any_stage_and_goes_on_from_there() {
    let pipeline = pipeline(&Device::flex());
    for (name, run) in manipulations() {
        let small = generate(&run, &pipeline, quick().stop_after(Stage::Decoder));
        assert!(small.iter().all(|image| image.dimensions() == (16, 16)), "{name}");
        assert_eq!(small, generate(&run, &pipeline, quick().size(16)), "{name}");
        assert_eq!(small, generate(&run, &pipeline, quick().max_upsamplers(0)), "{name}");
        let (early, events) = watch(&run, &pipeline, quick().stop_after(Stage::Prior), None);
        let early = early.unwrap();
        assert!(early.images.is_empty(), "{name}");
        let output = [Stage::Decoder, Stage::Inversion, Stage::Upsampler(0)];
        assert!(events.iter().all(|(stage, _)| !output.contains(stage)), "{name}: {events:?}");
        let late = watch(&run, &pipeline, quick(), None).0.unwrap();
        assert_eq!(early.embeddings.unwrap().into_data(), late.embeddings.unwrap().into_data(), "{name}");

        let n = small.len();
        let large = pipeline.generate(quick().low_images(small).num_images(n)).unwrap();
        assert!(large.images.iter().all(|image| image.dimensions() == (64, 64)), "{name}");
    }
}

#[test]
fn only_inpainting_reads_where_a_request_begins() {
    let pipeline = pipeline(&Device::flex());
    let given = Tensor::<2>::random([1, 64], Distribution::Normal(0.0, 1.0), &Device::flex());
    for (name, run) in manipulations() {
        for (request, part) in [
            (quick().embeddings(given.clone()), "embeddings"),
            (quick().embedding_of(gradient(9, 9, 3)), "embedding of an image"),
            (quick().low_images([gradient(16, 16, 3)]), "images to enlarge"),
        ] {
            let output = watch(&run, &pipeline, request, None).0;
            if name.contains("paint") {
                assert_eq!(output.unwrap().images.len(), 1, "{name}");
            } else {
                let message = output.unwrap_err().to_string();
                assert!(message.contains("starts from") && message.contains(part), "{name}: {message}");
            }
        }
    }
}
