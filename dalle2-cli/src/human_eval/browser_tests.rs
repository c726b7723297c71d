//! From making a study to scoring it, in a real browser.
//!
//! `DALLE2_SCREENSHOTS=docs/images cargo test -p dalle2-cli human_eval::browser` writes the screenshots of the guide.

use std::fs;
use std::path::{Path, PathBuf};

use dalle2::base::store::read_json;
use serde_json::Value;

use super::study::{Key, Kind, Model};
use super::tests::{CAPTIONS, human_eval, images, make};
use crate::browser::{Browser, Screen, installed, keys};

/// Writes a screenshot if `DALLE2_SCREENSHOTS` is set.
fn screenshot(browser: &Browser, name: &str) {
    let png = browser.screenshot();
    if let Some(dir) = std::env::var_os("DALLE2_SCREENSHOTS") {
        fs::write(Path::new(&dir).join(format!("{name}.png")), png).unwrap();
    }
}

/// The key that prefers a model, or neither.
fn arrow(key: &Key, question: usize, preferred: Option<Model>) -> char {
    match preferred {
        None => keys::DOWN,
        Some(model) if model == key.questions[question].left => keys::LEFT,
        Some(_) => keys::RIGHT,
    }
}

fn score(dir: &Path, files: &[PathBuf]) -> Value {
    let key = dir.join("study/key.json");
    let json = dir.join("score.json");
    let mut args = vec!["score", "--key", key.to_str().unwrap(), "--json", json.to_str().unwrap()];
    args.extend(files.iter().map(|file| file.to_str().unwrap()));
    human_eval(&args).unwrap();
    read_json(json).unwrap()
}

#[test]
fn a_browser_rates_a_study_by_keyboard_and_its_answers_are_scored() {
    if !installed() {
        return;
    }
    let dir = images();
    make(dir.path(), "study", &["--title", "Which emoji?"]).unwrap();
    let key = Key::read(&dir.path().join("study/key.json")).unwrap();
    let page = dir.path().join("study/page.html");
    let files = [desktop(&page, &key, dir.path()), phone(&page, &key, dir.path())];

    // The first rater prefers A in realism, B in captions, and A twice in diversity; the second always taps the first.
    let first = score(dir.path(), &files[..1]);
    let counts = |report: &Value| -> Vec<[u64; 3]> {
        let rates = report["rates"].as_array().unwrap();
        rates.iter().map(|rate| ["wins_a", "wins_b", "not_sure"].map(|name| rate[name].as_u64().unwrap())).collect()
    };
    assert_eq!(counts(&first), [[3, 0, 0], [0, 3, 0], [2, 0, 1]]);
    let left = |kind: Kind| key.questions.iter().filter(|q| q.kind == kind && q.left == Model::A).count() as u64;
    let both = counts(&score(dir.path(), &files));
    assert_eq!(both[0], [3 + left(Kind::Photorealism), 3 - left(Kind::Photorealism), 0]);
    assert_eq!(both[2], [2 + left(Kind::Diversity), 3 - left(Kind::Diversity), 1]);
}

/// Answers all questions by keyboard, with a step back and a reload on the way.
fn desktop(page: &Path, key: &Key, dir: &Path) -> PathBuf {
    let browser = Browser::open(Screen::Desktop);
    browser.goto_file(page);
    assert_eq!(browser.text("#title"), "Which emoji?");
    assert!(browser.shows("#intro") && !browser.shows("#save"));
    browser.type_into("#name", "Ada");
    browser.press([keys::ENTER]);

    assert!(browser.shows("#question") && !browser.shows("#caption"));
    assert_eq!(browser.text("#count"), "0 of 9");
    let loaded = "return [...document.querySelectorAll('.side img')].every(i => i.complete && i.naturalWidth == 128)";
    assert_eq!(browser.run(loaded), true);

    // The first answer is given wrongly, taken back and given again.
    browser.press([arrow(key, 0, Some(Model::B)), keys::BACKSPACE]);
    assert_eq!(browser.text("#count"), "1 of 9");
    assert_eq!(browser.run("return document.querySelectorAll('.side[aria-pressed=true]').length"), 1);
    browser.press([0, 1, 2].map(|question| arrow(key, question, Some(Model::A))));
    assert_eq!(browser.text("#caption"), format!("“{}”", CAPTIONS[key.questions[3].line]));
    screenshot(&browser, "human-eval-caption");
    browser.press([3, 4, 5].map(|question| arrow(key, question, Some(Model::B))));
    screenshot(&browser, "human-eval-diversity");
    assert_eq!(browser.run("return document.querySelectorAll('#left.grid img').length"), 16);

    browser.reload();
    assert_eq!(browser.text("#start"), "Go on (6 of 9 answered)");
    browser.press([keys::ENTER]);
    assert_eq!(browser.text("#count"), "6 of 9");
    let preferred = [Some(Model::A), None, Some(Model::A)];
    browser.press([6, 7, 8].map(|question| arrow(key, question, preferred[question - 6])));
    assert!(browser.shows("#done"));
    browser.press(['s']);
    let file = browser.download(dir);
    let loaded =
        browser.run("return performance.getEntriesByType('resource').filter(r => !r.name.startsWith('data:')).length");
    assert_eq!(loaded, 0, "the page loads nothing");

    let answers: Value = read_json(&file).unwrap();
    assert_eq!((answers["name"].as_str(), answers["answers"].as_array().unwrap().len()), (Some("Ada"), 9));
    file
}

/// Taps the first image every time, on a phone.
fn phone(page: &Path, key: &Key, dir: &Path) -> PathBuf {
    let browser = Browser::open(Screen::DarkPhone);
    browser.goto_file(page);
    browser.click("#start");
    for question in 0..key.questions.len() {
        assert_eq!(browser.text("#count"), format!("{question} of 9"));
        let overflow = "return document.documentElement.scrollWidth > innerWidth || document.documentElement.scrollHeight > innerHeight";
        assert_eq!(browser.run(overflow), false, "question {question} fits the screen");
        if key.questions[question].kind == Kind::Caption {
            screenshot(&browser, "human-eval-phone");
        }
        browser.click("#left");
    }
    browser.click("#save-done");
    browser.download(dir)
}
