use std::fs;
use std::path::Path;

use clap::Parser;
use dalle2::RgbImage;
use dalle2::base::image::{fit_square, open, save_png};
use dalle2::base::store::{read_json, write_json};
use dalle2_emoji::{Background, Position, catalogue, composite, render_svg};
use serde_json::Value;
use tempfile::TempDir;

use super::answers::{Answer, Answers, Choice};
use super::score::{NotSure, Rate, report};
use super::study::{Key, Kind, Model};
use super::{Cli, run};

pub const CAPTIONS: [&str; 3] = ["red apple", "koala", "party </script> popper"];

/// Runs the program with these arguments.
pub fn human_eval(args: &[&str]) -> anyhow::Result<()> {
    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        cli: Cli,
    }

    run(&Program::try_parse_from(["human_eval"].iter().chain(args))?.cli)
}

/// The original chain of an error.
fn failure(args: &[&str]) -> String {
    format!("{:#}", human_eval(args).unwrap_err())
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Folders `sharp` and `blurred` of 16 images for each caption, and the captions. A's images have no two backgrounds
/// alike, B's are all white and blurred.
pub fn images() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let emoji = catalogue();
    for (line, name) in ["red apple", "koala", "party popper"].into_iter().enumerate() {
        let svg = emoji.iter().find(|emoji| emoji.name == name).unwrap().svg();
        for number in 0..16 {
            let background = match number {
                0 => Background::WHITE,
                _ => Background { name: "some", rgb: [number * 16, 255 - number * 9, 120 + number * 8] },
            };
            let position = Position::NAMED[usize::from(number) % 8];
            let sprite = render_svg(svg, if number == 0 { 120 } else { 80 }).unwrap();
            let place = if number == 0 { Position::Center } else { position };
            let sharp = composite(&sprite, 128, background, place);
            let blurred =
                fit_square(&composite(&render_svg(svg, 26).unwrap(), 28, Background::WHITE, Position::Center), 128);
            save_png(&sharp, dir.path().join(format!("sharp/{line:04}-{number}.png"))).unwrap();
            save_png(&blurred, dir.path().join(format!("blurred/{line:04}-{number}.png"))).unwrap();
        }
    }
    fs::write(dir.path().join("captions.txt"), CAPTIONS.join("\n")).unwrap();
    dir
}

/// Makes a study of [`images`] in `out` with more arguments.
pub fn make(dir: &Path, out: &str, more: &[&str]) -> anyhow::Result<()> {
    let [a, b, captions, out] = ["sharp", "blurred", "captions.txt", out].map(|name| dir.join(name));
    let args = ["make", "--a", text(&a), "--b", text(&b), "--captions", text(&captions), "--out", text(&out)];
    human_eval(&[&args, more].concat())
}

/// The JSON that the page's script reads.
fn page_data(html: &str) -> Value {
    let (_, rest) = html.split_once(r#"<script id="study" type="application/json">"#).unwrap();
    serde_json::from_str(rest.split_once("</script>").unwrap().0).unwrap()
}

fn decoded(uri: &str, dir: &Path) -> RgbImage {
    use base64::{Engine as _, engine::general_purpose::STANDARD};
    let file = dir.join("decoded.png");
    fs::write(&file, STANDARD.decode(uri.strip_prefix("data:image/png;base64,").unwrap()).unwrap()).unwrap();
    open(&file).unwrap()
}

#[test]
fn the_key_says_what_the_page_shows_and_the_page_does_not() {
    let dir = images();
    make(dir.path(), "study", &[]).unwrap();
    let html = fs::read_to_string(dir.path().join("study/page.html")).unwrap();
    let key = Key::read(&dir.path().join("study/key.json")).unwrap();
    let page = page_data(&html);
    assert_eq!(page["study"], key.study.as_str());
    assert_eq!(page["images"].as_array().unwrap().len(), 2 * 3 * 16, "each image occurs once");
    for (question, keyed) in page["questions"].as_array().unwrap().iter().zip(&key.questions) {
        assert_eq!(question["id"], keyed.id.as_str());
        let shown = (keyed.kind == Kind::Caption).then_some(CAPTIONS[keyed.line]);
        assert_eq!(question["caption"].as_str(), shown);
        let folders = match keyed.left {
            Model::A => ["sharp", "blurred"],
            Model::B => ["blurred", "sharp"],
        };
        for (side, folder) in ["left", "right"].into_iter().zip(folders) {
            let shown = question[side].as_array().unwrap();
            assert_eq!(shown.len(), keyed.kind.images());
            for (number, index) in shown.iter().enumerate() {
                let uri = page["images"][index.as_u64().unwrap() as usize].as_str().unwrap();
                let file = dir.path().join(folder).join(format!("{:04}-{number}.png", keyed.line));
                assert_eq!(decoded(uri, dir.path()), open(file).unwrap());
            }
        }
    }
    for word in ["sharp", "blurred", "0000-", text(dir.path())] {
        assert!(!html.contains(word), "the page gives {word:?} away");
    }
    assert_eq!(html.matches("</script>").count(), 2, "a caption must not end the script");
}

#[test]
fn both_models_are_on_the_left_as_often() {
    let dir = images();
    for seed in ["1", "2", "3"] {
        make(dir.path(), seed, &["--num", "2", "--seed", seed]).unwrap();
        let key = Key::read(&dir.path().join(seed).join("key.json")).unwrap();
        assert_eq!(key.questions.len(), 6);
        for kind in [Kind::Photorealism, Kind::Caption, Kind::Diversity] {
            let left = key.questions.iter().filter(|q| q.kind == kind && q.left == Model::A).count();
            assert_eq!(left, 1, "{kind} with seed {seed}");
        }
    }
}

#[test]
fn the_seed_decides_the_study() {
    let dir = images();
    let kinds = ["--kinds", "photorealism,caption"];
    let page = |out: &str, seed: &str| {
        make(dir.path(), out, &[&kinds[..], &["--seed", seed]].concat()).unwrap();
        fs::read(dir.path().join(out).join("page.html")).unwrap()
    };
    let first = page("one", "5");
    assert!(first == page("two", "5") && first == page("one", "5"));
    assert!(first != page("three", "6"));
    let message = format!("{:#}", make(dir.path(), "one", &["--seed", "6"]).unwrap_err());
    assert!(message.contains("key of another study"), "{message}");
}

#[test]
fn images_and_captions_that_do_not_make_a_study_are_refused() {
    let dir = images();
    let failure_of = |more: &[&str]| format!("{:#}", make(dir.path(), "out", more).unwrap_err());
    assert!(failure_of(&["--num", "4"]).contains("--num 4: must be between 1 and 3"));

    save_png(&RgbImage::new(64, 64), dir.path().join("sharp/0001-0.png")).unwrap();
    let message = failure_of(&["--kinds", "caption"]);
    assert!(message.contains("64×64") && message.contains("--size"), "{message}");
    make(dir.path(), "sized", &["--kinds", "caption", "--size", "64"]).unwrap();

    fs::remove_file(dir.path().join("blurred/0002-7.png")).unwrap();
    let message = failure_of(&["--size", "64"]);
    assert!(message.contains("0002-7.png") && message.contains("--kinds photorealism,caption"), "{message}");
    make(dir.path(), "pairs", &["--kinds", "photorealism,caption", "--size", "64"]).unwrap();

    fs::write(dir.path().join("captions.txt"), "red apple\n\nkoala\n").unwrap();
    assert!(failure_of(&[]).contains("line 2 is empty"));
    fs::write(dir.path().join("captions.txt"), "").unwrap();
    assert!(failure_of(&[]).contains("no caption"));
}

/// A key without a page: question i is about `kinds[i % len]`, A is on the left of even ones.
fn key(n: usize) -> Key {
    let kinds = [Kind::Photorealism, Kind::Caption];
    let questions = (0..n).map(|i| super::study::KeyQuestion {
        id: format!("q{i}"),
        kind: kinds[i / 2 % 2],
        line: i,
        caption: "koala".into(),
        left: if i % 2 == 0 { Model::A } else { Model::B },
    });
    let source = |name: &str| super::study::Source { name: name.into(), dir: name.into() };
    Key::new("0123abcd".into(), "title".into(), [source("one"), source("two")], 0, questions.collect())
}

fn answers(rater: &str, choices: &[Choice]) -> Answers {
    let answers = choices.iter().enumerate();
    let mut answers = Answers {
        format: "dalle2-human-eval-answers".into(),
        version: 1,
        study: "0123abcd".into(),
        rater: rater.into(),
        name: String::new(),
        answers: answers.map(|(i, &choice)| Answer { question: format!("q{i}"), choice, ms: 900 }).collect(),
        checksum: String::new(),
    };
    answers.checksum = answers.sum();
    answers
}

#[test]
fn rates_and_intervals_have_their_closed_forms() {
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    // The paper's Table 1: 47.1 % ± 3.1 % of about a thousand answers.
    let rate = Rate::new(Kind::Photorealism, [471, 529, 0], NotSure::Half);
    assert!(close(rate.rate.unwrap(), 0.471));
    assert!((rate.interval.unwrap() - 0.031).abs() < 5e-4);
    let rate = Rate::new(Kind::Caption, [50, 30, 20], NotSure::Half);
    assert!(close(rate.rate.unwrap(), 0.6));
    assert!(close(rate.interval.unwrap(), 1.959_963_984_540_054 * ((0.55 - 0.36) / 100.0f64).sqrt()));
    let rate = Rate::new(Kind::Caption, [50, 30, 20], NotSure::Drop);
    assert!(close(rate.rate.unwrap(), 0.625));
    assert!(close(rate.interval.unwrap(), 1.959_963_984_540_054 * (0.625 * 0.375 / 80.0f64).sqrt()));
    // Either model's rate is what the other's leaves.
    let (a, b) =
        (Rate::new(Kind::Caption, [5, 2, 4], NotSure::Half), Rate::new(Kind::Caption, [2, 5, 4], NotSure::Half));
    assert!(close(a.rate.unwrap() + b.rate.unwrap(), 1.0) && close(a.interval.unwrap(), b.interval.unwrap()));
    let rate = Rate::new(Kind::Diversity, [0, 0, 3], NotSure::Drop);
    assert_eq!((rate.rate, rate.interval), (None, None));
}

#[test]
fn choices_are_read_through_the_key() {
    use Choice::{Left, NotSure as Unsure, Right};
    let raters = [answers("r1", &[Left, Right, Left, Left]), answers("r2", &[Left, Left, Unsure])];
    let report = report(&key(4), &raters, NotSure::Half);
    let counts = |rate: &Rate| (rate.kind, [rate.wins_a, rate.wins_b, rate.not_sure]);
    let all: Vec<_> = report.rates.iter().map(counts).collect();
    assert_eq!(all, [(Kind::Photorealism, [3, 1, 0]), (Kind::Caption, [1, 1, 1])]);
    assert_eq!(report.raters.len(), 2);
    assert_eq!(counts(&report.raters[1].rates[1]), (Kind::Caption, [0, 0, 1]));
    assert!((report.agreement.unwrap() - 1.0 / 3.0).abs() < 1e-12);
}

#[test]
fn answers_that_cannot_be_of_the_study_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let [key_file, file, other] = ["key.json", "answers.json", "other.json"].map(|name| dir.path().join(name));
    write_json(&key_file, &key(4)).unwrap();
    let score = |files: &[&Path]| {
        let files: Vec<&str> = files.iter().map(|file| text(file)).collect();
        failure(&[&["score", "--key", text(&key_file)], &files[..]].concat())
    };
    let good = answers("r1", &[Choice::Left; 4]);
    let with = |change: &dyn Fn(&mut Answers)| {
        let mut changed = good.clone();
        change(&mut changed);
        write_json(&file, &changed).unwrap();
        score(&[&file])
    };
    let signed = |change: &dyn Fn(&mut Answers)| {
        with(&|answers| {
            change(answers);
            answers.checksum = answers.sum();
        })
    };
    assert!(
        signed(&|a| a.study = "ffff0000".into()).contains("answers study ffff0000; the key belongs to study 0123abcd")
    );
    assert!(with(&|a| a.answers[1].choice = Choice::Right).contains("damaged or edited"));
    assert!(signed(&|a| a.answers[1].question = "q9".into()).contains("\"q9\", which is not a question of the study"));
    assert!(signed(&|a| a.answers[1].question = "q0".into()).contains("\"q0\" twice"));
    assert!(signed(&|a| a.version = 2).contains("version 2"));
    assert!(signed(&|a| a.answers.clear()).contains("nothing to score"));

    write_json(&file, &good).unwrap();
    human_eval(&["score", "--key", text(&key_file), text(&file)]).unwrap();
    fs::copy(&file, &other).unwrap();
    let message = score(&[&file, &other]);
    assert!(message.contains("answers.json") && message.contains("other.json are of the same rater"), "{message}");

    let original = fs::read(&file).unwrap();
    fs::write(&file, &original[..original.len() / 2]).unwrap();
    let message = score(&[&file]);
    assert!(message.contains("answers.json") && message.contains("line"), "{message}");
    fs::write(&file, [0xff, 0xd8, 0xff]).unwrap();
    assert!(score(&[&file]).contains("answers.json"));
    assert!(score(&[&key_file]).contains("damaged, or none"));
    assert!(score(&[&dir.path().join("nowhere.json")]).contains("nowhere.json"));
    let swapped = failure(&["score", "--key", text(&other), text(&other)]);
    assert!(swapped.contains("other.json"), "{swapped}");
}

#[test]
fn generate_writes_files_for_make_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let [captions, out] = ["captions.txt", "out"].map(|name| dir.path().join(name));
    fs::write(&captions, "red apple\nkoala\n").unwrap();
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/emoji");
    let args =
        ["generate", "--model", text(&model), "--captions", text(&captions), "--out", text(&out), "--num-images", "3"];
    let quick = ["--decoder-steps", "2", "--max-upsamplers", "0", "--device", "flex"];
    human_eval(&[&args[..], &quick].concat()).unwrap();
    let images = |line: usize| [0, 1, 2].map(|k| open(out.join(format!("{line:04}-{k}.png"))).unwrap());
    let (apples, koalas) = (images(0), images(1));
    assert_ne!(apples[0], apples[1]);

    assert!(failure(&[&args[..], &quick].concat()).contains("--resume"));
    fs::remove_file(out.join("0001-1.png")).unwrap();
    human_eval(&[&args[..], &quick, &["--resume"]].concat()).unwrap();
    assert_eq!((images(0), images(1)), (apples, koalas), "an image is independent of the others of its request");

    let study = dir.path().join("study");
    let dirs = ["make", "--a", text(&out), "--b", text(&out), "--captions", text(&captions), "--out", text(&study)];
    human_eval(&[&dirs[..], &["--kinds", "caption"]].concat()).unwrap();
    let page: Value = read_json(study.join("key.json")).unwrap();
    assert_eq!(page["questions"].as_array().unwrap().len(), 2);
}
