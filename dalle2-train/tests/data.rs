//! Data sets on disk: contents, order, and items that cannot be used.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use burn::data::{
    dataloader::{DataLoaderBuilder, batcher::Batcher},
    dataset::Dataset,
};
use burn::prelude::Device;
use dalle2_core::Error;
use dalle2_core::image::{RgbImage, save_png};
use dalle2_train::data::{CaptionedImage, CaptionedImages, Columns, ImageFiles};

fn write_image(dir: &Path, name: &str, shade: u8) {
    save_png(&RgbImage::from_pixel(4, 4, image::Rgb([shade; 3])), dir.join(name)).unwrap();
}

fn captioned(dir: &Path, name: &str, shade: u8, caption: &str) {
    write_image(dir, name, shade);
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
    let set = ImageFiles::folder(dir.path()).unwrap();
    let expected = [("a first", 1), ("a second", 2), ("ein drittes: größer", 3)];
    assert_eq!(shades(&set), expected.map(|(caption, shade)| (caption.to_string(), shade)));
    assert_eq!(set.captions().collect::<Vec<_>>(), expected.map(|(caption, _)| caption));
    assert!(set.problems().is_empty());
}

#[test]
fn unusable_items_of_a_folder_are_reported_and_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    write_image(dir.path(), "b.png", 2);
    captioned(dir.path(), "c.png", 3, " \n ");
    captioned(dir.path(), "d.png", 4, "fourth");
    fs::write(dir.path().join("d.png"), "not an image").unwrap();
    write_image(dir.path(), "e.png", 5);
    fs::write(dir.path().join("e.txt"), b"\xff\xfe bytes").unwrap();
    captioned(dir.path(), "f.png", 6, "sixth");
    fs::write(dir.path().join("f.png"), "").unwrap();

    let set = ImageFiles::folder(dir.path()).unwrap();
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
    let set = ImageFiles::folder(dir.path()).unwrap();
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
    let _ = ImageFiles::folder(dir.path()).unwrap().get(1);
}

#[test]
fn an_empty_folder_is_an_error_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let message = ImageFiles::folder(dir.path()).unwrap_err().to_string();
    assert!(message.contains(dir.path().to_str().unwrap()) && message.contains("png"), "{message}");
    write_image(dir.path(), "alone.png", 1);
    let message = ImageFiles::folder(dir.path()).unwrap_err().to_string();
    assert!(message.contains("1 passed over") && message.contains("alone.txt"), "{message}");
    assert!(matches!(ImageFiles::folder(dir.path().join("absent")), Err(Error::Io { .. })));
    assert!(matches!(ImageFiles::folder(dir.path().join("alone.png")), Err(Error::Io { .. })));
}

#[cfg(unix)]
#[test]
fn a_link_back_to_the_folder_is_not_followed() {
    let dir = tempfile::tempdir().unwrap();
    captioned(dir.path(), "a.png", 1, "first");
    std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
    assert_eq!(ImageFiles::folder(dir.path()).unwrap().len(), 1);
}

#[test]
fn an_index_keeps_the_order_of_its_lines() {
    let dir = tempfile::tempdir().unwrap();
    write_image(dir.path(), "x/b.png", 2);
    write_image(dir.path(), "a.png", 1);
    let index = dir.path().join("index.jsonl");
    let lines = "\u{feff}{\"image\": \"x/b.png\", \"caption\": \" zwei \", \"width\": 4}\r\n\n{\"caption\": \"one\", \"image\": \"./a.png\"}";
    fs::write(&index, lines).unwrap();
    let set = ImageFiles::index(&index, &Columns::default()).unwrap();
    assert_eq!(shades(&set), [("zwei".to_string(), 2), ("one".to_string(), 1)]);
    assert!(set.problems().is_empty(), "{:?}", set.problems());
}

#[test]
fn unusable_lines_are_reported_with_their_number() {
    let dir = tempfile::tempdir().unwrap();
    let outside = dir.path().join("secret.png");
    write_image(dir.path(), "secret.png", 9);
    let inside = dir.path().join("set");
    write_image(&inside, "a.png", 1);
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
    let set = ImageFiles::index(&index, &Columns::default()).unwrap();
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
    assert!(matches!(ImageFiles::index(&index, &Columns::default()), Err(Error::Io { .. })));
    fs::write(&index, "\n\n").unwrap();
    assert!(ImageFiles::index(&index, &Columns::default()).unwrap_err().to_string().contains("index.jsonl"));
    fs::write(&index, "[]\n").unwrap();
    let message = ImageFiles::index(&index, &Columns::default()).unwrap_err().to_string();
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
    let set = ImageFiles::folder(dir.path()).unwrap();
    let loader = DataLoaderBuilder::new(Captions).batch_size(2).num_workers(2).build(set);
    let mut captions: Vec<String> = loader.iter().flat_map(|batch| batch.unwrap()).collect();
    captions.sort();
    assert_eq!(captions, (0..5).map(|i| format!("number {i}")).collect::<Vec<_>>());
}

/// Quotes, separators and line breaks inside of fields, other columns, and the same rows behind tabs.
#[test]
fn a_csv_index_is_read_with_its_quotes() {
    let dir = tempfile::tempdir().unwrap();
    write_image(dir.path(), "x/a, b.png", 1);
    write_image(dir.path(), "c.png", 2);
    let text =
        "\u{feff}id,image,caption\r\n1,\"x/a, b.png\",\"says \"\"hi\"\", twice\"\r\n2,c.png,\"\nsecond line\"\r\n";
    let expected = [("says \"hi\", twice".to_string(), 1), ("second line".to_string(), 2)];
    for (name, text) in [
        ("index.csv", text.to_string()),
        ("index.tsv", text.replace(", ", "; ").replace(',', "\t").replace("; ", ", ")),
    ] {
        let index = dir.path().join(name);
        fs::write(&index, text).unwrap();
        let set = ImageFiles::index(&index, &Columns::default()).unwrap();
        assert_eq!(shades(&set), expected, "{name}");
        assert!(set.problems().is_empty(), "{:?}", set.problems());
        assert_eq!(set.caption(0).unwrap(), expected[0].0);
    }
}

#[test]
fn unusable_rows_of_a_csv_index_are_reported_with_their_line() {
    let dir = tempfile::tempdir().unwrap();
    write_image(dir.path(), "a.png", 1);
    let index = dir.path().join("index.csv");
    let mut text =
        b"file_name,text\na.png,fine\na.png\n../a.png,out\nb.png,gone\na.png,\na.png,\"two\nlines\"\na.png,\xff\n"
            .to_vec();
    text.extend(b"a.png,more,fields\na.png,\"never closed\n");
    fs::write(&index, &text).unwrap();
    let columns = Columns { image: "file_name".into(), caption: "text".into() };
    let set = ImageFiles::index(&index, &columns).unwrap();
    assert_eq!(set.captions().collect::<Vec<_>>(), ["fine", "two", "never closed"]);
    let problems = set.problems();
    let expected = [
        ("3", "1 fields, the header 2"),
        ("4", "leads out"),
        ("5", "does not exist"),
        ("6", "empty"),
        ("9", "UTF-8"),
        ("10", "3 fields"),
    ];
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
    for (problem, (line, reason)) in problems.iter().zip(expected) {
        assert!(problem.item.ends_with(&format!("index.csv:{line}")) && problem.reason.contains(reason), "{problem:?}");
    }
    let message = ImageFiles::index(&index, &Columns::default()).unwrap_err().to_string();
    assert!(message.contains("lacks a column `image`: its columns are file_name, text"), "{message}");
    fs::write(&index, "").unwrap();
    assert!(ImageFiles::index(&index, &columns).unwrap_err().to_string().contains("index.csv"));
}

#[cfg(feature = "parquet")]
mod parquet_index {
    use std::{fs, path::Path, sync::Arc};

    use dalle2_train::data::{CaptionedImages, Columns, ImageFiles};
    use parquet::{
        basic::Compression,
        data_type::{ByteArray, ByteArrayType, Int64Type},
        file::{properties::WriterProperties, writer::SerializedFileWriter},
        schema::parser::parse_message_type,
    };

    use super::{shades, write_image};

    /// Two row groups with a number, a path and a caption; a caption that is `None` is null.
    fn write(path: &Path, compression: Compression, rows: [&[(&str, Option<&str>)]; 2]) {
        let schema =
            "message index { required int64 id; required binary image (UTF8); optional binary caption (UTF8); }";
        let properties = WriterProperties::builder().set_compression(compression).build();
        let schema = Arc::new(parse_message_type(schema).unwrap());
        let mut file =
            SerializedFileWriter::new(fs::File::create(path).unwrap(), schema, Arc::new(properties)).unwrap();
        for rows in rows {
            let mut group = file.next_row_group().unwrap();
            let bytes = |text: &str| ByteArray::from(text.as_bytes().to_vec());
            let ids: Vec<i64> = (0..rows.len() as i64).collect();
            let images: Vec<ByteArray> = rows.iter().map(|row| bytes(row.0)).collect();
            let captions: Vec<ByteArray> = rows.iter().filter_map(|row| row.1).map(bytes).collect();
            let levels: Vec<i16> = rows.iter().map(|row| row.1.is_some().into()).collect();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<Int64Type>().write_batch(&ids, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&images, None, None).unwrap();
            column.close().unwrap();
            let mut column = group.next_column().unwrap().unwrap();
            column.typed::<ByteArrayType>().write_batch(&captions, Some(&levels), None).unwrap();
            column.close().unwrap();
            group.close().unwrap();
        }
        file.close().unwrap();
    }

    #[test]
    fn rows_are_read_in_every_compression_and_unusable_ones_reported() {
        let dir = tempfile::tempdir().unwrap();
        write_image(dir.path(), "a.png", 1);
        write_image(dir.path(), "b.png", 2);
        let index = dir.path().join("index.parquet");
        let first = [("a.png", Some("one")), ("../a.png", Some("out")), ("b.png", None)];
        let second = [("b.png", Some("zwei: größer")), ("c.png", Some("gone"))];
        for compression in [
            Compression::UNCOMPRESSED,
            Compression::SNAPPY,
            Compression::GZIP(Default::default()),
            Compression::ZSTD(Default::default()),
            Compression::LZ4_RAW,
        ] {
            write(&index, compression, [&first, &second]);
            let set = ImageFiles::index(&index, &Columns::default()).unwrap();
            assert_eq!(shades(&set), [("one".to_string(), 1), ("zwei: größer".to_string(), 2)], "{compression}");
            let problems = set.problems();
            let expected = [("2", "leads out"), ("3", "`caption` is empty"), ("5", "does not exist")];
            assert_eq!(problems.len(), 3, "{problems:?}");
            for (problem, (row, reason)) in problems.iter().zip(expected) {
                let item = format!("index.parquet:{row}");
                assert!(problem.item.ends_with(&item) && problem.reason.contains(reason), "{problem:?}");
            }
        }
    }

    #[test]
    fn files_that_are_no_index_are_named() {
        let dir = tempfile::tempdir().unwrap();
        write_image(dir.path(), "a.png", 1);
        let index = dir.path().join("index.parquet");
        let row = [("a.png", Some("one"))];
        write(&index, Compression::SNAPPY, [&row, &row]);
        let message = |caption: &str| {
            let columns = Columns { caption: caption.into(), ..Columns::default() };
            ImageFiles::index(&index, &columns).unwrap_err().to_string()
        };
        assert!(message("text").contains("its columns are id, image, caption"));
        assert!(message("id").contains("`id` is not text"), "{}", message("id"));
        let complete = fs::read(&index).unwrap();
        fs::write(&index, &complete[..complete.len() - 10]).unwrap();
        assert!(message("caption").contains("index.parquet"));
        // Damage anywhere is an error or a problem, never a panic.
        for at in (0..complete.len()).step_by(7) {
            let mut bytes = complete.clone();
            bytes[at] ^= 0x55;
            fs::write(&index, bytes).unwrap();
            let _ = ImageFiles::index(&index, &Columns::default());
        }
    }
}
