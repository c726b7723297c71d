//! The pages of two small runs and of the bundled runs, in a real browser.
//!
//! `DALLE2_SCREENSHOTS=docs/images cargo test -p dalle2-cli report::` writes a screenshot of the second one.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Parser;
use dalle2::base::image::{RgbImage, save_png};
use dalle2::base::store::write_json;
use dalle2_train::StepRecord;
use serde_json::json;

use super::{Cli, run, runs};
use crate::browser::{Browser, Screen, installed};

/// A run that learns, as the trainer writes one.
fn write_run(dir: &Path, learning_rate: f64, metric: &str) {
    fs::create_dir_all(dir.join("samples")).unwrap();
    write_json(dir.join("config.json"), &json!({
        "model": { "channels": [32, 64], "name": "<b>bold</b>" },
        "train": { "learning_rate": learning_rate, "steps": 300, "schedule": { "cosine": { "final_fraction": 0.0 } } },
    }))
    .unwrap();
    let mut lines = String::new();
    for step in 1..=300u64 {
        let x = step as f64 / 300.0;
        let loss = (-3.0 * x * learning_rate / 1e-3).exp() + 0.05 * (step as f64 * 12.9898).sin();
        let mut record = StepRecord {
            step,
            loss: (step != 70).then_some(loss),
            learning_rate: learning_rate * (1.0 - x),
            grad_norm: Some(0.5 + 0.2 * (step as f64).cos()),
            skipped: u64::from(step >= 70),
            loss_scale: Some(if step > 20 { 32_768.0 } else { 65_536.0 }),
            overflows: Some(u64::from(step >= 20)),
            images_per_second: 30.0 + (step as f64 * 0.3).sin(),
            seconds: step as f64 * 0.5,
            memory_mib: Some(900.0 + 30.0 * (1.0 - (-(step as f64) / 20.0).exp())),
            ..Default::default()
        };
        record.metrics.insert(metric.into(), loss / 2.0);
        if step % 50 == 0 {
            record.validation.insert("recall@1".into(), x);
        }
        lines.push_str(&serde_json::to_string(&record).unwrap());
        lines.push('\n');
    }
    fs::write(dir.join("metrics.jsonl"), lines).unwrap();
    for step in [100u64, 200, 300] {
        let shade = (step * 2 / 3) as u8;
        let image = RgbImage::from_fn(96, 64, |x, y| [shade, (x * 2) as u8, (y * 3) as u8].into());
        save_png(&image, dir.join(format!("samples/step-{step}.png"))).unwrap();
    }
}

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    cli: Cli,
}

fn report(args: &[&Path], out: &Path) -> anyhow::Result<String> {
    let mut line = vec![PathBuf::from("report")];
    line.extend(args.iter().map(|path| path.to_path_buf()));
    line.extend([PathBuf::from("--out"), out.to_path_buf()]);
    run(&Program::parse_from(line).cli)?;
    Ok(fs::read_to_string(out)?)
}

#[test]
fn runs_with_the_same_figures_are_compared_and_others_stand_alone() {
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    write_run(&at("a/decoder"), 1e-3, "mse");
    write_run(&at("b/decoder"), 2e-3, "mse");
    write_run(&at("b/clip"), 1e-3, "accuracy");
    let groups = runs::open(&[at("a"), at("b")]).unwrap();
    let names: Vec<Vec<&str>> =
        groups.iter().map(|group| group.runs.iter().map(|run| run.name.as_str()).collect()).collect();
    assert_eq!(names, [vec!["a/decoder", "b/decoder"], vec!["b/clip"]]);
    assert_eq!(groups[0].runs[0].settings["train.schedule.cosine.final_fraction"], "0.0");
    let some: Vec<u64> = groups[0].runs[0].some_samples(2).iter().map(|(step, _)| *step).collect();
    assert_eq!(some, [100, 300]);

    let html = report(&[&at("a"), &at("b")], &at("page.html")).unwrap();
    let differences = html.split("class=\"differences\"").nth(1).unwrap().split("</table>").next().unwrap();
    assert!(differences.contains("train.learning_rate") && differences.contains("0.001"), "{differences}");
    assert!(!differences.contains("train.steps"), "only what differs: {differences}");
    assert!(html.contains("&lt;b&gt;bold") && !html.contains("<b>bold"));
    let none = report(&[temp.path()], &at("none.html")).unwrap_err().to_string();
    assert!(none.contains("nor a folder of runs"), "{none}");
}

#[test]
fn a_browser_shows_the_page_whole() {
    if !installed() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    write_run(&at("steady"), 1e-3, "mse");
    write_run(&at("quick"), 3e-3, "mse");
    let page = at("page.html");
    report(&[&at("steady"), &at("quick")], &page).unwrap();
    for screen in [Screen::Desktop, Screen::DarkPhone] {
        let browser = Browser::open(screen);
        browser.goto_file(&page);
        assert_eq!(browser.text("h1"), "Training runs");
        assert_eq!(browser.text("h2"), "steady, quick");
        // Loss, one metric, one validation, gradients, rate, skipped, the factor and its overflows, throughput, memory.
        assert_eq!(browser.run("return document.querySelectorAll('.curves svg').length"), 10);
        let lines = "return [...document.querySelectorAll('.curves svg')].every(s => s.querySelectorAll('polyline').length >= 2)";
        assert_eq!(browser.run(lines), true, "two curves in every plot");
        let loaded = "return [...document.images].length == 6 && [...document.images].every(i => i.complete && i.naturalWidth == 96)";
        assert_eq!(browser.run(loaded), true);
        let overflow = "return document.documentElement.scrollWidth > innerWidth";
        assert_eq!(browser.run(overflow), false, "the page is not wider than the screen");
        let loaded = "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length";
        assert_eq!(browser.run(loaded), 0, "the page loads nothing");
        assert!(!browser.shows(".settings"));
        browser.click("summary");
        assert!(browser.shows(".settings"));
    }
}

#[test]
fn a_browser_shows_the_page_of_the_kept_runs() {
    let bundled = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji/runs");
    let (residual, plain) = (bundled.join("upsampler_1"), bundled.join("upsampler_1_plain"));
    let temp = tempfile::tempdir().unwrap();
    let page = temp.path().join("page.html");
    let html = report(&[&residual, &plain], &page).unwrap();
    let differences = html.split("class=\"differences\"").nth(1).unwrap().split("</table>").next().unwrap();
    assert!(differences.contains("model.residual"), "{differences}");
    assert_eq!(differences.matches("<tr").count(), 2, "they differ in nothing else: {differences}");
    let groups = runs::open(&[residual, plain]).unwrap();
    assert_eq!(groups.len(), 1, "they have the same metrics");
    let losses: Vec<f64> = groups[0].runs.iter().map(|run| run.last_loss().unwrap()).collect();
    assert!(losses[0] < losses[1], "the residual is learned to a lower loss than whole images: {losses:?}");
    for run in &groups[0].runs {
        assert_eq!(run.steps.last().unwrap().step, 6000);
        assert_eq!(run.samples.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [500, 2000, 6000]);
    }
    if !installed() {
        return;
    }
    for screen in [Screen::Desktop, Screen::DarkPhone] {
        let browser = Browser::open(screen);
        browser.goto_file(&page);
        assert_eq!(browser.text("h2"), "upsampler_1, upsampler_1_plain");
        // Loss, mean squared error, gradients, rate, throughput, memory.
        assert_eq!(browser.run("return document.querySelectorAll('.curves svg').length"), 6);
        let lines = "return [...document.querySelectorAll('.curves svg')].every(s => s.querySelectorAll('polyline').length >= 2)";
        assert_eq!(browser.run(lines), true, "a curve of each run in every plot");
        let loaded = "return [...document.images].length == 6 && [...document.images].every(i => i.complete && i.naturalWidth > 300)";
        assert_eq!(browser.run(loaded), true, "three samples of each");
        let overflow = "return document.documentElement.scrollWidth > innerWidth";
        assert_eq!(browser.run(overflow), false, "the page is not wider than the screen");
        if let (Screen::Desktop, Some(dir)) = (screen, std::env::var_os("DALLE2_SCREENSHOTS")) {
            fs::write(Path::new(&dir).join("report-emoji.png"), browser.screenshot()).unwrap();
        }
    }
}
