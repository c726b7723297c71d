//! Comparison of a diffusion and an autoregressive prior (DALL·E 2, section 5.1).
//!
//! Trains both with one budget on the same embedded pairs, measures them on held-out pairs, and decodes the same
//! captions with the same noise from no embedding, from the caption's embedding, from either prior and from the true
//! image embedding.
//!
//! Writes `table.json`, `table.md`, plots, contact sheets and a self-contained `index.html`. An interrupted run resumes.
mod decode;
mod measure;
mod page;
mod plots;
mod runs;
mod settings;
mod table;
mod world;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use burn::prelude::Tensor;
use dalle2::base::image::{RgbImage, save_png};
use dalle2::base::metrics::{Estimate, diversity};
use dalle2::base::nn::l2_normalize;
use dalle2::base::{Prior, PriorOptions, TextEncoder};
use dalle2_train::recipes::prior::PriorKind;
use decode::Gallery;
use measure::{Collected, Estimates, Sweep, best, first, measure, milliseconds, sample, select, sweep};
use runs::{Lab, Trained};
use serde_json::json;
pub use settings::Cli;
use settings::Configs;
use table::{Row, Table};
use world::World;

const KINDS: [PriorKind; 2] = [PriorKind::Diffusion, PriorKind::Autoregressive];
/// Distance between the seeds of different trainings.
const SEEDS: u64 = 1_000_000;

/// The trainings of one kind of prior, with their measurements.
struct Contender {
    kind: PriorKind,
    trained: Vec<Trained>,
    sweep: Vec<Sweep>,
    guidance: f64,
    metrics: Collected,
    milliseconds: Vec<f64>,
    /// The embeddings that are decoded, for each seed.
    decoded: Vec<Tensor<2>>,
}

pub fn run(cli: &Cli) -> Result<()> {
    let start = Instant::now();
    let plan = cli.plan()?;
    let world = World::open(cli, &plan)?;
    let text = &world.encoders.text;
    let configs = Configs::new(&plan, [text.embed_dim(), text.token_width(), text.context_length()])?;
    let lab = Lab::new(&world, &plan, &configs)?;
    let gallery = Gallery::new(&world, plan.decode)?;
    let steps = announce(cli, &lab, &gallery)?;

    let mut contenders = Vec::new();
    for (kind, steps) in KINDS.into_iter().zip(steps) {
        contenders.push(contend(cli, &lab, &gallery, kind, steps)?);
    }
    let truth_diversity = diversity(world.test_variations.clone())?;
    let mut table = Table {
        command: command(),
        settings: describe(&lab, &gallery)?,
        rows: rows(&lab, &gallery, &contenders, truth_diversity, cli)?,
        checks: Vec::new(),
        sweeps: contenders.iter().map(|c| (c.kind.name(), c.sweep.clone())).collect(),
        curves: contenders
            .iter()
            .map(|c| (c.kind.name(), c.trained.iter().map(|t| t.curve.clone()).collect()))
            .collect(),
        seconds: start.elapsed().as_secs_f64(),
    };
    table.check();
    table.write(&cli.out)?;
    let names = ["compute.svg", "frechet.svg", "cosine.svg"];
    let path = |i: usize| cli.out.join(names[i]);
    plots::compute(&path(0), &table.curves)?;
    let frechet = ("frechet", "Fréchet distance to the true embeddings, lower is better");
    plots::guidance(&path(1), &table.sweeps, truth_diversity, frechet, 0.0)?;
    let cosine = ("text_cosine", "cosine to the caption's embedding");
    let true_cosine = world.test.compare(world.test.image.clone())?.text_cosine_true;
    plots::guidance(&path(2), &table.sweeps, truth_diversity, cosine, true_cosine)?;
    let sheets: Vec<String> = (0..plan.seeds).map(sheet_name).collect();
    page::write(&cli.out, &table, &names, &sheets)?;
    println!("\n{}", table.markdown());
    println!("{} ({:.0} s)", cli.out.join("index.html").display(), start.elapsed().as_secs_f64());
    Ok(())
}

/// Times some steps and an image, prints the plan with its expected duration, and returns the steps of each kind.
fn announce(cli: &Cli, lab: &Lab<'_>, gallery: &Gallery) -> Result<[u64; 2]> {
    let (plan, world) = (lab.plan, lab.world);
    println!(
        "{} pairs to train on, {} for validation, {} for the table; {} of {} principal components lose {:.2} % of the variance",
        world.train.len(),
        world.validation.text.batch_size(),
        world.test.text.batch_size(),
        lab.quantizer.num_components(),
        world.encoders.text.embed_dim(),
        100.0 * lab.quantizer.reconstruction_error(world.test.image.clone())?,
    );
    let image = gallery.seconds_per_image(world, cli.decoder_steps)?;
    let mut total = image * (5 * plan.seeds * gallery.pairs.len()) as f64;
    let mut steps = [0; 2];
    for (i, kind) in KINDS.into_iter().enumerate() {
        let (seconds, cost) = (lab.seconds_per_step(kind)?, lab.cost(kind));
        steps[i] = lab.steps(kind, cli.budget, seconds);
        println!(
            "{:15} {} parameters, {} tokens for each pair, {} steps of {:.3} s, {} trainings",
            kind.name(),
            cost.parameters,
            cost.tokens,
            steps[i],
            seconds,
            plan.seeds
        );
        total += seconds * (steps[i] * plan.seeds as u64) as f64 * 1.2; // validation, the optimizer, the sweep
    }
    println!("about {:.0} minutes, if nothing else runs on this machine", (total / 60.0).max(1.0));
    Ok(steps)
}

/// Trains a prior for each seed, chooses its guidance scale on the validation pairs and measures it on the test pairs.
fn contend(cli: &Cli, lab: &Lab<'_>, gallery: &Gallery, kind: PriorKind, steps: u64) -> Result<Contender> {
    let (plan, world) = (lab.plan, lab.world);
    let mut trained = Vec::new();
    for seed in 0..plan.seeds {
        let dir = cli.out.join("runs").join(format!("{}-{seed}", kind.name()));
        let run = lab.train(kind, steps, seed as u64, &dir)?;
        let cosine = run.curve.last().map_or(f64::NAN, |point| point.cosine);
        println!("{} {seed}: {} steps, {:.0} s, held-out cosine {cosine:.3}", kind.name(), run.steps, run.seconds);
        trained.push(run);
    }
    let priors: Vec<&dyn Prior> = trained.iter().map(|run| &*run.prior).collect();
    let sweep = sweep(&priors, &world.validation, &cli.guidance, plan.samples)?;
    let guidance = best(&sweep);
    let options = PriorOptions { guidance: Some(guidance), ..Default::default() };
    let (mut collected, mut decoded, mut times) = (Collected::default(), Vec::new(), Vec::new());
    for (seed, prior) in priors.iter().enumerate() {
        let samples = sample(*prior, &world.test, &options, plan.samples, SEEDS * seed as u64)?;
        let predicted = first(&samples);
        collected.push(measure(&world.test, &world.test_pairs, &predicted)?);
        collected.push([("diversity".to_owned(), diversity(samples)?)]);
        decoded.push(select(&predicted, &gallery.rows));
        times.push(milliseconds(*prior, &world.test, &options)?);
    }
    Ok(Contender { kind, trained, sweep, guidance, metrics: collected, milliseconds: times, decoded })
}

/// Decodes every row and measures the images; writes a contact sheet for each seed.
fn rows(
    lab: &Lab<'_>,
    gallery: &Gallery,
    contenders: &[Contender],
    truth_diversity: f64,
    cli: &Cli,
) -> Result<BTreeMap<&'static str, Row>> {
    let (plan, world) = (lab.plan, lab.world);
    let mut decoded: BTreeMap<&'static str, Collected> = BTreeMap::new();
    for seed in 0..plan.seeds {
        let embedding = |name: &str| match name {
            "text_embedding" => Some(l2_normalize(gallery.truth.text.pooled.clone())),
            "oracle" => Some(gallery.truth.image.clone()),
            _ => contenders.iter().find(|c| c.kind.name() == name).map(|c| c.decoded[seed].clone()),
        };
        let mut columns: Vec<(&str, Vec<RgbImage>)> = Vec::new();
        for name in table::ORDER {
            let images = gallery.decode(world, embedding(name).as_ref(), cli.decoder_steps, SEEDS * seed as u64)?;
            decoded.entry(name).or_default().push(gallery.judge(world, &images)?);
            columns.push((name, images));
        }
        save_png(&gallery.sheet(world, &columns)?, cli.out.join(sheet_name(seed)))?;
        println!("seed {seed}: {} captions decoded in {} ways", gallery.pairs.len(), table::ORDER.len());
    }
    let mut decoded: BTreeMap<&'static str, Estimates> =
        decoded.iter().map(|(name, collected)| Ok((*name, collected.estimates()?))).collect::<Result<_>>()?;

    let mut row = |name: &'static str, description, embedding: Option<Estimates>| -> Result<Row> {
        Ok(Row {
            description,
            embedding,
            decoded: decoded.remove(name).with_context(|| format!("{name} was not decoded"))?,
            parameters: 0,
            training_steps: 0,
            training_macs: 0.0,
            training_seconds: None,
            milliseconds_per_sample: Estimate::of(&[0.0])?,
            guidance: None,
        })
    };
    let fixed = |predicted: Tensor<2>, diversity: f64| -> Result<Option<Estimates>> {
        let mut collected = Collected::default();
        collected.push(measure(&world.test, &world.test_pairs, &predicted)?);
        collected.push([("diversity".to_owned(), diversity)]);
        Ok(Some(collected.estimates()?))
    };
    let mut rows = BTreeMap::from([
        ("caption_only", row("caption_only", "the caption alone, no image embedding", None)?),
        (
            "text_embedding",
            row(
                "text_embedding",
                "the caption's embedding in place of the image's",
                fixed(world.test.text.pooled.clone(), 0.0)?,
            )?,
        ),
        ("oracle", row("oracle", "the true image embedding", fixed(world.test.image.clone(), truth_diversity)?)?),
    ]);
    for contender in contenders {
        let name = contender.kind.name();
        let cost = lab.cost(contender.kind);
        let seconds: Vec<f64> = contender.trained.iter().map(|run| run.seconds).collect();
        let steps = contender.trained.first().map_or(0, |run| run.steps);
        let base = row(name, "the prior's prediction", Some(contender.metrics.estimates()?))?;
        rows.insert(
            name,
            Row {
                parameters: cost.parameters,
                training_steps: steps,
                training_macs: cost.macs * (steps * plan.batch_size as u64) as f64,
                training_seconds: Some(Estimate::of(&seconds)?),
                milliseconds_per_sample: Estimate::of(&contender.milliseconds)?,
                guidance: Some(contender.guidance),
                ..base
            },
        );
    }
    Ok(rows)
}

fn describe(lab: &Lab<'_>, gallery: &Gallery) -> Result<serde_json::Value> {
    let world = lab.world;
    let compositions = world.test_pairs.iter().filter(|pair| pair.composition).count();
    Ok(json!({
        "plan": lab.plan,
        "training_pairs": world.train.len(),
        "validation_pairs": world.validation.text.batch_size(),
        "test_pairs": world.test.text.batch_size(),
        "test_compositions": compositions,
        "decoded_captions": gallery.pairs.iter().map(|pair| &pair.caption).collect::<Vec<_>>(),
        "components_lose": lab.quantizer.reconstruction_error(world.test.image.clone())?,
        "configurations": lab.configs,
    }))
}

/// The command line without the path of the program.
fn command() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    format!("dalle2 {}", arguments.join(" "))
}

fn sheet_name(seed: usize) -> String {
    format!("sheet-{seed}.png")
}
