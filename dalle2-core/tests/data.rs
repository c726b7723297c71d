//! Data sets on disk: what is read, in which order, and what becomes of items that cannot be used.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use burn::data::{
    dataloader::{DataLoaderBuilder, batcher::Batcher},
    dataset::Dataset,
};
use burn::prelude::Device;
use dalle2_core::{
    Error,
    data::{CaptionedImage, FolderDataset, JsonLinesDataset},
    image::{RgbImage, save_png},
};

fn picture(dir: &Path, name: &str, shade: u8) {
    save_png(&RgbImage::from_pixel(4, 4, image::Rgb([shade; 3])), dir.join(name)).unwrap();
}

fn captioned(dir: &Path, name: &str, shade: u8, caption: &str) {
    picture(dir, name, shade);
    fs::write(dir.join(name).with_extension("txt"), caption).unwrap();
}

fn shades(set: &impl Dataset<CaptionedImage>) -> Vec<(String, u8)> {
    let shade = |item: CaptionedImage| (item.caption, item.image.get_pixel(0, 0).0[0]);
    (0..set.len()).map(|i| shade(set.get(i).unwrap())).collect()
}

#[test]
fn a_folder_is_read_in_order_with_the_folders_in_it() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "b.png", 2, "\u{feff}\n  a second  \nnot this line");
    captioned(dir.path(), "a.PNG", 1, "a first");
    captioned(dir.path(), "deep/er/c.png", 3, "ein drittes: größer\r\n");
    fs::write(dir.path().join("notes.md"), "not an image").unwrap();
    fs::write(dir.path().join("orphan.txt"), "a caption without an image").unwrap();
    let set = FolderDataset::open(dir.path()).unwrap();
    let expected = [("a first", 1), ("a second", 2), ("ein drittes: größer", 3)];
    assert_eq!(shades(&set), expected.map(|(caption, shade)| (caption.to_string(), shade)));
    assert_eq!(set.captions().collect::<Vec<_>>(), expected.map(|(caption, _)| caption));
    assert!(set.problems().is_empty());
}

#[test]
fn unusable_items_of_a_folder_are_reported_and_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    picture(dir.path(), "b.png", 2);
    captioned(dir.path(), "c.png", 3, " \n ");
    captioned(dir.path(), "d.png", 4, "fourth");
    fs::write(dir.path().join("d.png"), "not a picture").unwrap();
    picture(dir.path(), "e.png", 5);
    fs::write(dir.path().join("e.txt"), b"\xff\xfe bytes").unwrap();
    captioned(dir.path(), "f.png", 6, "sixth");
    fs::write(dir.path().join("f.png"), "").unwrap();

    let set = FolderDataset::open(dir.path()).unwrap();
    assert_eq!(set.len(), 3);
    let at_opening = set.problems();
    assert_eq!(at_opening.len(), 3, "{at_opening:?}");
    for (problem, (item, reason)) in at_opening.iter().zip([("b.png", "b.txt"), ("c.txt", "empty"), ("e.txt", "UTF-8")])
    {
        assert!(problem.item.ends_with(item) && problem.reason.contains(reason), "{problem:?}");
    }
    // The damaged one is replaced by the next, the last one by the first; however often they are asked for, they count once.
    for _ in 0..3 {
        assert_eq!(shades(&set), [("first".to_string(), 1), ("first".to_string(), 1), ("first".to_string(), 1)]);
    }
    let problems = set.problems();
    assert_eq!(problems.len(), 5, "{problems:?}");
    assert!(
        problems.iter().any(|p| p.item.ends_with("d.png") && p.reason.contains("PNG, JPEG or WebP")),
        "{problems:?}"
    );
}

#[test]
fn an_image_that_vanishes_is_replaced_and_a_set_without_any_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    captioned(dir.path(), "b.png", 2, "second");
    let set = FolderDataset::open(dir.path()).unwrap();
    fs::remove_file(dir.path().join("a.png")).unwrap();
    assert_eq!(set.get(0).unwrap().caption, "second");
    fs::remove_file(dir.path().join("b.png")).unwrap();
    let message = set.get(1).unwrap_err().to_string();
    assert!(message.contains(dir.path().to_str().unwrap()) && message.contains("2 images"), "{message}");
}

#[test]
#[should_panic(expected = "index 1 is out of range")]
fn an_index_beyond_the_end_is_a_bug() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    let _ = FolderDataset::open(dir.path()).unwrap().get(1);
}

#[test]
fn an_empty_folder_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let message = FolderDataset::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains(dir.path().to_str().unwrap()) && message.contains("png"), "{message}");
    picture(dir.path(), "alone.png", 1);
    let message = FolderDataset::open(dir.path()).unwrap_err().to_string();
    assert!(message.contains("1 passed over") && message.contains("alone.txt"), "{message}");
    assert!(matches!(FolderDataset::open(dir.path().join("absent")), Err(Error::Io { .. })));
    assert!(matches!(FolderDataset::open(dir.path().join("alone.png")), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn a_link_back_to_the_folder_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    assert_eq!(FolderDataset::open(dir.path()).unwrap().len(), 1);
}

#[test]
fn an_index_keeps_the_order_of_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    picture(dir.path(), "x/b.png", 2);
    picture(dir.path(), "a.png", 1);
    let index = dir.path().join("index.jsonl");
    let lines = "\u{feff}{\"image\": \"x/b.png\", \"caption\": \" zwei \", \"width\": 4}\r\n\n{\"caption\": \"one\", \"image\": \"./a.png\"}";
    fs::write(&index, lines).unwrap();
    let set = JsonLinesDataset::open(&index).unwrap();
    assert_eq!(shades(&set), [("zwei".to_string(), 2), ("one".to_string(), 1)]);
    assert!(set.problems().is_empty(), "{:?}", set.problems());
}

#[test]
fn unusable_lines_are_reported_with_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("secret.png");
    picture(dir.path(), "secret.png", 9);
    let inside = dir.path().join("set");
    picture(&inside, "a.png", 1);
    let index = inside.join("index.jsonl");
    let mut bytes = Vec::new();
    for line in [
        r#"{"image": "a.png", "caption": "fine"}"#,
        r#"{"image": "../secret.png", "caption": "outside"}"#,
        &format!(r#"{{"image": {outside:?}, "caption": "absolute"}}"#),
        r#"{"image": "absent.png", "caption": "gone"}"#,
        r#"{"image": "a.png", "caption": "  "}"#,
        r#"{"image": "a.png"}"#,
        r#"{"image": "a.png", "caption": "cut o"#,
        r#"{"image": "", "caption": "no name"}"#,
    ] {
        bytes.extend(line.as_bytes());
        bytes.push(b'\n');
    }
    bytes.extend(b"{\"image\": \"a.png\", \"caption\": \"\xff\"}\n");
    fs::write(&index, bytes).unwrap();
    let set = JsonLinesDataset::open(&index).unwrap();
    assert_eq!(shades(&set), [("fine".to_string(), 1)]);
    let problems = set.problems();
    let expected = [
        ("2", "leads out"),
        ("3", "leads out"),
        ("4", "does not exist"),
        ("5", "caption is empty"),
        ("6", "missing field `caption`"),
        ("7", "EOF"),
        ("8", "does not exist"),
        ("9", "UTF-8|unicode|invalid"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, (line, reason)) in problems.iter().zip(expected) {
        assert!(problem.item.ends_with(&format!("index.jsonl:{line}")), "{problem:?}");
        assert!(reason.split('|').any(|reason| problem.reason.contains(reason)), "{problem:?}");
    }
}

#[test]
fn an_index_without_a_usable_line_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index.jsonl");
    assert!(matches!(JsonLinesDataset::open(&index), Err(Error::Io { .. })));
    fs::write(&index, "\n\n").unwrap();
    assert!(JsonLinesDataset::open(&index).unwrap_err().to_string().contains("index.jsonl"));
    fs::write(&index, "[]\n").unwrap();
    let message = JsonLinesDataset::open(&index).unwrap_err().to_string();
    assert!(message.contains("index.jsonl:1") && message.contains("passed over"), "{message}");
}

#[derive(Clone)]
struct Captions;

impl Batcher<CaptionedImage, Vec<String>> for Captions {
    fn batch(&self, items: Vec<CaptionedImage>, _: &Device) -> Vec<String> {
        items.into_iter().map(|item| item.caption).collect()
    }
}

#[test]
fn the_sets_work_with_burns_data_loader() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..5 {
        captioned(dir.path(), &format!("{i}.png"), i, &format!("number {i}"));
    }
    let set = FolderDataset::open(dir.path()).unwrap();
    let loader = DataLoaderBuilder::new(Captions).batch_size(2).num_workers(2).build(set);
    let mut captions: Vec<String> = loader.iter().flat_map(|batch| batch.unwrap()).collect();
    captions.sort();
    assert_eq!(captions, (0..5).map(|i| format!("number {i}")).collect::<Vec<_>>());
}
