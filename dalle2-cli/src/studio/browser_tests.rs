//! All that the page can do, in a real browser.
//!
//! `DALLE2_SCREENSHOTS=docs/images cargo test -p dalle2-cli studio::browser` writes the screenshots of the guide.

use std::fs;
use std::path::Path;

use dalle2::base::image::{Provenance, open, save_png};
use dalle2_emoji::{Background, Position, catalogue, composite, render_svg};

use super::client::Server;
use crate::browser::{Browser, Screen, installed, keys};

/// Writes a screenshot if `DALLE2_SCREENSHOTS` is set.
fn screenshot(browser: &Browser, name: &str) {
    // Sliders and buttons change their colours gently.
    std::thread::sleep(std::time::Duration::from_millis(300));
    let png = browser.screenshot();
    if let Some(dir) = std::env::var_os("DALLE2_SCREENSHOTS") {
        fs::write(Path::new(&dir).join(format!("{name}.png")), png).unwrap();
    }
}

/// Opens the page and waits until it listens.
fn open_page(screen: Screen, server: &Server) -> Browser {
    let browser = Browser::open(screen);
    browser.goto(&server.url());
    browser.wait_for("the studio", "return document.querySelector('#connection').dataset.on === 'true'");
    browser
}

/// Puts a value into a field as typing does.
fn fill(browser: &Browser, field: &str, value: &str) {
    browser.run(&format!("document.querySelector('{field}').value = ''"));
    browser.type_into(field, value);
}

/// Moves a slider.
fn slide(browser: &Browser, slider: &str, value: f64) {
    browser.run(&format!(
        "const slider = document.querySelector('{slider}'); slider.value = {value};
         slider.dispatchEvent(new Event('input', {{ bubbles: true }}))"
    ));
}

/// Waits until a job with this title is shown with `count` images, all loaded.
fn wait_for_result(browser: &Browser, title: &str, count: usize) {
    browser.wait_for(
        title,
        &format!(
            "const images = [...document.querySelectorAll('#canvas [data-id]')].map(e => e.matches('img') ? e : e.firstChild);
             return document.querySelector('#work-title').textContent === {title:?} && images.length === {count}
                 && images.every(i => i.complete && i.naturalWidth > 0)"
        ),
    );
}

/// Submits the form; the job shows its progress before its result.
fn submit(browser: &Browser, title: &str, count: usize) {
    browser.click("#submit");
    assert_eq!(browser.text("#problem"), "");
    wait_for_result(browser, title, count);
}

fn selected_tab(browser: &Browser) -> String {
    browser.text("[role=tab][aria-selected=true]")
}

fn quiet(browser: &Browser) {
    assert_eq!(browser.console(), Vec::<String>::new());
}

#[test]
fn a_browser_runs_every_task() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let browser = open_page(Screen::Desktop, &server);
    let dir = tempfile::tempdir().unwrap();
    generate(&browser);
    seeds_and_download(&browser, dir.path());
    variations(&browser);
    interpolate(&browser);
    text_diff(&browser);
    inpaint(&browser, &server, dir.path());
    mix(&browser);
    cancel(&browser);
    mistakes(&browser);
    let elsewhere = "return performance.getEntriesByType('resource').filter(r => !r.name.startsWith(location.origin) && !r.name.startsWith('data:')).length";
    assert_eq!(browser.run(elsewhere), 0, "the page loads nothing from elsewhere");
    quiet(&browser);
}

fn generate(browser: &Browser) {
    assert!(browser.shows("#welcome") && !browser.shows("#work") && !browser.shows("#gallery"));
    // Records what is shown during the job, since it may be gone when the test looks.
    browser.run(
        "window.seen = { previews: 0, widths: new Set() };
         new MutationObserver(() => {
             seen.previews += document.querySelectorAll('#canvas .preview').length;
             seen.widths.add(document.querySelector('#bar span').style.width);
         }).observe(document.querySelector('#work'), { subtree: true, childList: true, attributes: true })",
    );
    browser.click("#ideas button");
    assert_eq!(browser.run("return document.querySelector('#generate-caption').value"), "red apple");
    fill(browser, "#seed", "20");
    browser.type_into("#generate-caption", "\u{e007}");
    wait_for_result(browser, "red apple", 4);
    assert!(!browser.shows("#running") && browser.shows("#actions"));
    assert!(browser.run("return seen.previews").as_u64().unwrap() > 0, "previews were shown");
    assert!(browser.run("return seen.widths.size").as_u64().unwrap() > 3, "the bar advances");
    assert!(browser.text("#work-info").contains("128 × 128 px"), "{}", browser.text("#work-info"));
    assert_eq!(browser.text("#gallery-count"), "4");
    screenshot(browser, "studio-generate");
    quiet(browser);
}

fn seeds_and_download(browser: &Browser, dir: &Path) {
    // The first in the gallery is the newest, the last image of the job.
    browser.click("#shots .seed");
    assert_eq!(browser.run("return document.querySelector('#seed').value"), "23");
    browser.click("#dice");
    assert_eq!(browser.run("return document.querySelector('#seed').value"), "");
    browser.click("#canvas .tile:nth-child(2)");
    assert_eq!(browser.text("#use-seed"), "Reuse seed 21");
    browser.click("#download");
    let file = browser.download(dir);
    assert_eq!(file.file_name().unwrap(), "red-apple-21.png");
    let provenance = Provenance::read(&file).unwrap().unwrap();
    assert_eq!((provenance.caption.as_str(), provenance.seed), ("red apple", Some(21)));
    assert_eq!(open(&file).unwrap().dimensions(), (128, 128));
}

fn variations(browser: &Browser) {
    browser.click("#actions [data-use=variations]");
    assert_eq!(selected_tab(browser), "Variations");
    slide(browser, "#eta", 1.0);
    fill(browser, "#images", "2");
    submit(browser, "variation of red apple", 2);
    assert_eq!(browser.text("#gallery-count"), "6");
}

fn interpolate(browser: &Browser) {
    // The first of the gallery is a variation; the other end is chosen with the keyboard alone.
    browser.click("#shots li:last-child .open");
    wait_for_result(browser, "red apple", 4);
    browser.click("#actions [data-use=from]");
    assert_eq!(selected_tab(browser), "Interpolate");
    assert!(!browser.shows("#images"), "an interpolation has frames");
    browser.type_into("#interpolate [data-slot=to] input", "koala");
    slide(browser, "#frames", 5.0);
    fill(browser, "#seed", "4");
    submit(browser, "from red apple to koala", 5);
    assert_eq!(browser.text("#frame-label"), "0.00");
    let visible = "return document.querySelector('#canvas .selected').src";
    let first = browser.run(visible);
    browser.run("document.querySelector('#frame').focus()");
    browser.press([keys::RIGHT, keys::RIGHT, keys::RIGHT]);
    assert_eq!(browser.text("#frame-label"), "0.75");
    assert_ne!(browser.run(visible), first);
    assert_eq!(
        browser.run("return getComputedStyle(document.querySelector('#canvas .selected')).visibility"),
        "visible"
    );
    screenshot(browser, "studio-interpolate");
    browser.click("#play");
    browser.wait_for("the film", "return document.querySelector('#frame-label').textContent === '1.00'");
    browser.click("#play");
    assert_eq!(browser.text("#play"), "Play");
}

fn text_diff(browser: &Browser) {
    browser.click("#shots li:last-child .open");
    wait_for_result(browser, "red apple", 4);
    browser.click("#actions [data-use=text_diff]");
    assert_eq!(browser.run("return document.querySelector('#diff-from').value"), "red apple");
    browser.type_into("#diff-to", "green apple");
    slide(browser, "#diff-frames", 3.0);
    submit(browser, "red apple, from red apple to green apple", 3);
    assert_eq!(browser.text("#frame-label"), "0.17");
}

fn inpaint(browser: &Browser, server: &Server, dir: &Path) {
    let all = catalogue();
    let emoji = all.iter().find(|emoji| emoji.name == "koala").unwrap();
    let koala = composite(&render_svg(emoji.svg(), 104).unwrap(), 128, Background::WHITE, Position::Center);
    let file = dir.join("koala.png");
    save_png(&koala, &file).unwrap();

    browser.click("#tab-inpaint");
    browser.click("#inpaint .well");
    assert!(browser.shows("#picker"));
    browser.type_into("#file", file.to_str().unwrap());
    browser.wait_for(
        "the upload",
        "return !document.querySelector('#picker').open && document.querySelector('#brush-image').naturalWidth === 128",
    );
    assert_eq!(browser.text("#inpaint .well"), "koala");
    browser.click("#submit");
    assert_eq!(browser.text("#problem"), "Paint the region to generate anew.");

    let share = || browser.text("#brush-share");
    assert_eq!(share(), "Nothing is painted yet.");
    browser.drag("#brush-canvas", &[(0.1, 0.15), (0.5, 0.12), (0.9, 0.15), (0.8, 0.35), (0.2, 0.35)]);
    let painted = share();
    assert!(painted.contains("is generated anew"), "{painted}");
    browser.click("#erase");
    browser.drag("#brush-canvas", &[(0.2, 0.2), (0.3, 0.2)]);
    assert_ne!(share(), painted);
    browser.click("#undo-brush");
    assert_eq!(share(), painted);
    browser.click("#swap");
    assert_ne!(share(), painted);
    browser.click("#swap");
    assert_eq!(share(), painted);
    browser.click("#clear");
    assert_eq!(share(), "Nothing is painted yet.");

    // By keyboard, then by hand.
    browser.run("document.querySelector('#brush-canvas').focus()");
    browser.press(['e', keys::RIGHT, ' ']);
    assert_ne!(share(), "Nothing is painted yet.");
    browser.click("#clear");
    slide(browser, "#brush-size", 30.0);
    browser.drag("#brush-canvas", &[(0.12, 0.16), (0.5, 0.14), (0.88, 0.16)]);
    browser.type_into("#inpaint-caption", "koala");
    fill(browser, "#images", "2");
    submit(browser, "koala, inpainted: koala", 2);
    browser.run("document.querySelector('#controls').scrollIntoView()");
    screenshot(browser, "studio-inpaint");

    // The lower half is far from the brush.
    let id = browser.run("return document.querySelector('#canvas .tile').dataset.id");
    let result = image::load_from_memory(&server.png(id.as_str().unwrap())).unwrap().into_rgb8();
    let changed = |rows: std::ops::Range<u32>| {
        rows.flat_map(|y| (0..128).map(move |x| (x, y)))
            .filter(|(x, y)| result.get_pixel(*x, *y) != koala.get_pixel(*x, *y))
            .count()
    };
    assert_eq!(changed(64..128), 0);
    assert!(changed(0..64) > 100, "{} pixels changed", changed(0..64));
}

fn mix(browser: &Browser) {
    browser.click("#canvas .tile");
    browser.click("#actions [data-use=mix]");
    browser.type_into("#parts li:nth-child(2) input[type=text]", "red apple");
    fill(browser, "#images", "1");
    browser.click("#submit");
    browser.wait_for("a mixture", "return document.querySelector('#work-info').textContent.startsWith('Mixed')");
}

fn cancel(browser: &Browser) {
    browser.click("#tab-generate");
    fill(browser, "#images", "8");
    browser.click("summary");
    fill(browser, "#steps", "250");
    browser.click("#submit");
    browser.wait_for("a step", "return document.querySelector('#count').textContent.includes('of 250')");
    // Another one waits, and is cancelled in the queue.
    browser.click("#submit");
    browser.wait_for("the queue", "return document.querySelectorAll('#jobs li[data-state=waiting]').length === 1");
    assert_eq!(browser.text("#queue-count"), "2");
    browser.click("#jobs li[data-state=waiting] .quiet");
    browser.wait_for("the queue", "return document.querySelectorAll('#jobs li[data-state=waiting]').length === 0");
    browser.click("#jobs li[data-state=running] .job");
    browser.click("#cancel");
    browser.wait_for("the end", "return document.querySelector('.message strong')?.textContent === 'Cancelled'");
    fill(browser, "#steps", "4");
    fill(browser, "#images", "1");
    submit(browser, "red apple", 1);
}

fn mistakes(browser: &Browser) {
    fill(browser, "#images", "9");
    browser.click("#submit");
    assert_eq!(browser.text("#problem"), "Images: a whole number from 1 to 8.");
    assert_eq!(browser.run("return document.activeElement.id"), "images");
    fill(browser, "#images", "1");
    browser.run("document.querySelector('#generate-caption').value = '   '");
    browser.click("#submit");
    assert_eq!(browser.text("#problem"), "Write a caption.");
    // Tabs are gone through with the arrows.
    browser.run("document.querySelector('#tab-generate').focus()");
    browser.press([keys::RIGHT, keys::RIGHT]);
    assert_eq!(selected_tab(browser), "Interpolate");
    browser.click("#theme");
    assert_eq!(browser.run("return document.documentElement.dataset.theme"), "light");
    // After a reload the gallery is there again.
    let count = browser.text("#gallery-count");
    browser.reload();
    browser
        .wait_for("the gallery", &format!("return document.querySelector('#gallery-count').textContent === {count:?}"));
    // An edited end of a text field is a caption, so the image beside it is forgotten.
    browser.click("#shots .open");
    browser.click("#actions [data-use=from]");
    browser.type_into("#interpolate [data-slot=from] input", "koala");
    assert_eq!(browser.text("#interpolate [data-slot=from] .well"), "Choose or drop an image");
}

#[test]
fn a_phone_shows_all_of_it() {
    if !installed() {
        return;
    }
    let server = Server::start();
    let browser = open_page(Screen::DarkPhone, &server);
    browser.click("#ideas button:nth-child(2)");
    fill(&browser, "#seed", "2");
    browser.click("#submit");
    wait_for_result(&browser, "koala", 4);
    for tab in ["generate", "variations", "interpolate", "text_diff", "inpaint", "mix"] {
        browser.click(&format!("#tab-{tab}"));
        let overflow = "return document.documentElement.scrollWidth - innerWidth";
        assert_eq!(browser.run(overflow), 0, "{tab} fits a width of 390 pixels");
    }
    browser.click("#tab-generate");
    browser.run("document.querySelector('#viewer').scrollIntoView()");
    screenshot(&browser, "studio-phone");
    let ground = browser.run("return getComputedStyle(document.body).backgroundColor");
    assert_eq!(ground, "rgb(16, 17, 22)", "dark, as the system is");
    quiet(&browser);
}
