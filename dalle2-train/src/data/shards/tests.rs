use super::*;

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Write};

use ::image::{ImageFormat, Rgb, RgbImage};
use flate2::{Compression, write::GzEncoder};
use tar::{EntryType, Header};

/// A tar file in memory, whose names may be what `tar` itself would not write.
#[derive(Default)]
struct Shard(Vec<u8>);

impl Shard {
    fn entry(mut self, name: &str, kind: EntryType, bytes: &[u8], size: u64) -> Self {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(size);
        header.set_cksum();
        self.0.extend(header.as_bytes());
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        self.entry(name, EntryType::Regular, bytes, bytes.len() as u64)
    }

    /// A grey image of this shade and its caption.
    fn sample(self, key: &str, shade: u8) -> Self {
        self.file(&format!("{key}.png"), grey_png(shade)).file(&format!("{key}.txt"), format!("shade {shade}"))
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

fn grey_png(shade: u8) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    // Noise, so that cutting it off is noticed.
    let image = RgbImage::from_fn(8, 8, |x, y| Rgb([shade, (x * 37 + y * 91) as u8, (x * y) as u8]));
    image.write_to(&mut bytes, ImageFormat::Png).unwrap();
    bytes.into_inner()
}

fn gz(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn write(dir: &tempfile::TempDir, shards: &[(&str, Vec<u8>)]) -> Vec<PathBuf> {
    shards
        .iter()
        .map(|(name, bytes)| {
            fs::write(dir.path().join(name), bytes).unwrap();
            dir.path().join(name)
        })
        .collect()
}

fn open_one(shard: Vec<u8>) -> (tempfile::TempDir, Result<ShardDataset>) {
    let dir = tempfile::tempdir().unwrap();
    let paths = write(&dir, &[("00.tar", shard)]);
    let set = ShardDataset::open(&paths, ShardOptions::default());
    (dir, set)
}

fn shade(item: &CaptionedImage) -> u8 {
    item.image.get_pixel(0, 0).0[0]
}

/// Item and reason, without the directory.
fn problems(set: &ShardDataset) -> BTreeMap<String, String> {
    let list = set.problems();
    let short = |problem: &Problem| problem.item.rsplit_once("00.tar").unwrap().1.trim_start_matches(':').to_string();
    let map: BTreeMap<_, _> = list.iter().map(|problem| (short(problem), problem.reason.clone())).collect();
    assert_eq!(map.len(), list.len(), "each once: {list:?}");
    map
}

#[test]
fn samples_are_read_in_order_from_plain_and_compressed_shards() {
    let dir = tempfile::tempdir().unwrap();
    let first = Shard::default().file("README", "hello").sample("./a/0", 1).sample("a/1", 2).end();
    // Members in the other order, and something between that no one asked for.
    let second = Shard::default()
        .file("b.json", r#"{"caption": "from json", "width": 8}"#)
        .file("b.emb.npy", "???")
        .file("b.PNG", grey_png(3))
        .end();
    let paths = write(&dir, &[("0.tar", first), ("1.tgz", gz(&second))]);
    let set = ShardDataset::open(&paths, ShardOptions::default()).unwrap();
    assert!(set.problems().is_empty(), "{:?}", set.problems());
    assert_eq!((set.len(), set.num_shards()), (3, 2));
    for (index, (shade_of, text)) in [(1, "shade 1"), (2, "shade 2"), (3, "from json")].into_iter().enumerate() {
        let item = set.get(index).unwrap();
        assert_eq!((shade(&item), item.caption.as_str()), (shade_of, text));
        assert_eq!(set.caption(index).unwrap(), text);
        assert_eq!(shade(&set.exact(index).unwrap()), shade_of);
    }
}

/// Every kind of damage costs one sample and has one message, however often it is read.
#[test]
fn broken_samples_are_named_once_and_passed_over() {
    let complete = grey_png(9);
    let mut bomb = grey_png(9);
    bomb[16..24].copy_from_slice(&[0, 0, 0x27, 0x10, 0, 0, 0x27, 0x10]);
    let checksum = crc32fast::hash(&bomb[12..29]);
    bomb[29..33].copy_from_slice(&checksum.to_be_bytes());
    let shard = Shard::default()
        .sample("fine", 1)
        .file("truncated.png", &complete[..complete.len() - 40])
        .file("truncated.txt", "cut")
        .file("json.png", &complete)
        .file("json.json", r#"{"caption": "cut o"#)
        .file("nocaption.png", &complete)
        .file("noimage.txt", "alone")
        .file("blank.png", &complete)
        .file("blank.txt", " \n ")
        .file("bytes.png", &complete)
        .file("bytes.txt", b"\xff\xfe")
        .file("bomb.png", &bomb)
        .file("bomb.txt", "100 megapixels")
        .file("../../escape.png", &complete)
        .file("../../escape.txt", "out")
        .file("/etc/absolute.png", &complete)
        .file("/etc/absolute.txt", "out")
        .file("win\\..\\x.png", &complete)
        .entry("link.png", EntryType::Symlink, b"", 0)
        .file("link.txt", "a link")
        .entry("hard.png", EntryType::Link, b"", 0)
        .entry("device.png", EntryType::Block, b"", 0)
        .sample("fine", 77)
        .sample("twin", 3)
        .sample("twin", 78)
        .file("notapicture.jpg", "hello")
        .file("notapicture.txt", "hello")
        .file("._hidden.png", "resource fork")
        .entry("folder/", EntryType::Directory, b"", 0)
        .sample("last", 2)
        .end();
    let (dir, set) = open_one(shard);
    let set = set.unwrap();
    assert_eq!(set.len(), 6, "three good ones, three that only decoding finds out: {:?}", set.problems());
    for _ in 0..2 {
        let shades: Vec<u8> = (0..6).map(|i| shade(&set.get(i).unwrap())).collect();
        assert_eq!(shades, [1, 3, 3, 3, 2, 2]);
    }
    let reported = problems(&set);
    for (item, reason) in [
        ("truncated.png", ""),
        ("json", ".json: EOF"),
        ("nocaption", "lacks a caption: expected one of txt, json:caption"),
        ("noimage", "no image"),
        ("blank", "empty"),
        ("bytes", "UTF-8"),
        ("bomb.png", "10000×10000"),
        ("../../escape", "leads out"),
        ("/etc/absolute", "leads out"),
        ("win\\", "leads out"),
        ("link", "is a link"),
        ("hard", "is a link"),
        ("device", "special file"),
        ("fine", "second time"),
        ("twin", "occurs twice in the sample"),
        ("notapicture.jpg", "PNG, JPEG or WebP"),
    ] {
        assert!(reported.get(item).is_some_and(|reported| reported.contains(reason)), "{item} {reason}: {reported:#?}");
    }
    assert_eq!(reported.len(), 16, "{reported:#?}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is written");
    assert!(set.exact(1).is_err());
}

#[test]
fn what_comes_before_the_damage_is_used() {
    let shard = Shard::default().sample("a", 1).sample("b", 2).sample("c", 3);
    let cut = shard.0.len() - 700;
    let complete = shard.end();
    let mut overwritten = complete.clone();
    overwritten[cut / 512 * 512 + 8] ^= 1;
    let compressed = gz(&complete);
    // In the middle of a member, in the header of the last sample's caption, and in the compressed stream.
    for (bytes, samples) in
        [(complete[..cut].to_vec(), 2), (overwritten, 2), (compressed[..compressed.len() * 9 / 10].to_vec(), 2)]
    {
        let (_dir, set) = open_one(bytes);
        let set = set.unwrap();
        assert!(set.len() >= samples - 1 && set.len() < 3, "{}", set.len());
        assert_eq!((0..set.len()).map(|i| shade(&set.get(i).unwrap())).collect::<Vec<_>>()[0], 1);
        let reported = problems(&set);
        assert!(reported[""].contains("samples before are used"), "{reported:?}");
    }
}

#[test]
fn shards_without_samples_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let good = Shard::default().sample("a", 1).end();
    let paths = write(&dir, &[("0.tar", b"not a tar file".repeat(100)), ("1.tar", vec![]), ("2.tar", good)]);
    let mut paths = paths;
    paths.push(dir.path().join("3.tar"));
    let set = ShardDataset::open(&paths, ShardOptions::default()).unwrap();
    assert_eq!((set.len(), set.problems().len()), (1, 3), "{:?}", set.problems());
    assert_eq!(set.caption(0).unwrap(), "shade 1");
    let message = ShardDataset::open(&paths[..2], ShardOptions::default()).unwrap_err().to_string();
    assert!(message.contains("0.tar") && message.contains("2 passed over"), "{message}");
    let error = ShardDataset::open(&paths, ShardOptions { window: 0, ..Default::default() }).unwrap_err();
    assert!(error.to_string().contains("window"), "{error}");
}

#[test]
fn fields_have_an_order_and_the_image_may_be_chosen() {
    let shard = Shard::default()
        .file("a.mask.png", grey_png(200))
        .file("a.png", grey_png(1))
        .file("a.txt", "plain")
        .file("a.json", r#"{"caption": "first", "alt": ["second"]}"#)
        .file("b.png", grey_png(2))
        .file("b.json", r#"{"alt": ["only"]}"#)
        .file("b.mask.png", grey_png(201))
        .end();
    let dir = tempfile::tempdir().unwrap();
    let paths = write(&dir, &[("00.tar", shard)]);
    let open = |captions: &[&str], image: Option<&str>| {
        let captions = captions.iter().map(|field| field.parse().unwrap()).collect();
        let options = ShardOptions { captions, image: image.map(String::from), ..Default::default() };
        let set = ShardDataset::open(&paths, options).unwrap();
        (0..set.len()).map(|i| set.get(i).unwrap()).map(|item| (shade(&item), item.caption)).collect::<Vec<_>>()
    };
    let texts = |texts: [(u8, &str); 2]| texts.map(|(shade, text)| (shade, text.to_string())).to_vec();
    assert_eq!(open(&["json:alt.0", "txt"], None), texts([(1, "second"), (2, "only")]));
    assert_eq!(open(&["txt", "json:caption", "json:alt.0"], None), texts([(1, "plain"), (2, "only")]));
    assert_eq!(open(&["txt", "json:alt.0"], Some("mask.png")), texts([(200, "plain"), (201, "only")]));
    assert_eq!(open(&["txt"], None), [(1, "plain".to_string())]);
}

#[test]
fn long_names_are_read_in_both_forms() {
    let long = "deep/".repeat(40);
    let gnu = format!("{long}g.png");
    let pax = |name: &str| {
        let record = |length: usize| format!("{length} path={name}\n");
        let body = record(0).len();
        // The length counts its own digits.
        (body..body + 4).map(record).find(|text| text.split(' ').next().unwrap() == text.len().to_string()).unwrap()
    };
    let shard = Shard::default()
        .file("x", "")
        .entry("././@LongLink", EntryType::GNULongName, gnu.as_bytes(), gnu.len() as u64)
        .file("cut off", grey_png(1))
        .entry("././@LongLink", EntryType::GNULongName, format!("{long}g.txt\0").as_bytes(), 206)
        .file("cut off", "gnu")
        .file("p.png", grey_png(2))
        .entry("PaxHeaders/p", EntryType::XHeader, pax("p.txt").as_bytes(), pax("p.txt").len() as u64)
        .file("other", "pax")
        .end();
    let (_dir, set) = open_one(shard);
    let set = set.unwrap();
    assert!(set.problems().is_empty(), "{:?}", set.problems());
    assert_eq!((set.caption(0).unwrap(), set.caption(1).unwrap()), ("gnu".to_string(), "pax".to_string()));
    assert_eq!(set.shards[0].name(0), gnu);
    // A record that claims to be long is not read into memory.
    let (_dir, set) = open_one(
        Shard::default().sample("a", 1).entry("././@LongLink", EntryType::GNULongName, &[b'x'; 70_000], 70_000).end(),
    );
    assert!(problems(&set.unwrap())[""].contains("70000 bytes"));
}

/// Several hundred samples in shards of uneven length.
fn many(dir: &tempfile::TempDir) -> (Vec<PathBuf>, Vec<PathBuf>) {
    let shards = [40usize, 3, 61, 25].into_iter().enumerate().map(|(number, len)| {
        let add = |shard: Shard, i: usize| shard.sample(&format!("{number}-{i}"), (number * 60 + i) as u8);
        (number, (0..len).fold(Shard::default(), add).end())
    });
    shards
        .map(|(number, bytes)| {
            let (plain, packed) = (format!("{number}.tar"), format!("{number}.tar.gz"));
            let paths = write(dir, &[(&plain, bytes.clone()), (&packed, gz(&bytes))]);
            (paths[0].clone(), paths[1].clone())
        })
        .unzip()
}

#[test]
fn compressed_shards_give_the_same_batches_as_plain_ones() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = many(&dir);
    let sequence = |paths: &[PathBuf], buffer: usize, places: std::ops::Range<u64>| {
        let set = ShardDataset::open(paths, ShardOptions { window: 16, buffer, ..Default::default() }).unwrap();
        let order = set.order(11).unwrap();
        places.map(|place| set.get(order.item_at(place)).unwrap().caption).collect::<Vec<_>>()
    };
    let expected = sequence(&plain, 0, 0..300);
    assert_eq!(sequence(&packed, 1 << 20, 0..300), expected);
    // A buffer that holds next to nothing costs time only, and a run that starts in the middle finds its place.
    assert_eq!(sequence(&packed, 1000, 0..40), expected[..40]);
    assert_eq!(sequence(&packed, 1 << 20, 170..300), expected[170..]);
    let mut epoch = expected[..129].to_vec();
    epoch.sort();
    let set = ShardDataset::open(&plain, ShardOptions::default()).unwrap();
    let mut all: Vec<String> = (0..129).map(|i| set.caption(i).unwrap()).collect();
    all.sort();
    assert_eq!(epoch, all);
}

#[test]
fn the_buffer_is_bounded_and_shards_are_unpacked_once_in_an_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (_, packed) = many(&dir);
    let set = ShardDataset::open(&packed, ShardOptions { window: 16, buffer: 12_000, ..Default::default() }).unwrap();
    let order = set.order(11).unwrap();
    for place in 0..129 {
        set.get(order.item_at(place)).unwrap();
        let streams = set.reader.held();
        assert!(streams.0 <= 12_000, "{streams:?}");
    }
    // Every sample passed once: two windows fit into the buffer.
    assert_eq!(set.reader.held().1, 129);
}

#[test]
fn several_threads_read_what_one_would() {
    let dir = tempfile::tempdir().unwrap();
    let (plain, packed) = many(&dir);
    for paths in [plain, packed] {
        let set = ShardDataset::open(&paths, ShardOptions { window: 16, buffer: 4000, ..Default::default() }).unwrap();
        let captions: Vec<String> = (0..129).map(|i| set.caption(i).unwrap()).collect();
        std::thread::scope(|scope| {
            for offset in 0..3 {
                let (set, captions) = (&set, &captions);
                scope.spawn(move || {
                    for i in (0..129).map(|i| (i * 7 + offset * 43) % 129) {
                        assert_eq!(set.get(i).unwrap().caption, captions[i]);
                    }
                });
            }
        });
    }
}

#[test]
fn an_index_is_noted_and_made_anew_when_the_shard_changes() {
    let dir = tempfile::tempdir().unwrap();
    let notes = tempfile::tempdir().unwrap();
    let options = ShardOptions { index_dir: Some(notes.path().join("new")), ..Default::default() };
    let shard = Shard::default().sample("a", 1).file("b.png", grey_png(2)).sample("c", 3).end();
    let paths = write(&dir, &[("00.tar", shard)]);
    let fresh = ShardDataset::open(&paths, options.clone()).unwrap();
    let files = || fs::read_dir(notes.path().join("new")).unwrap().map(|e| e.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(files().len(), 1);
    // What was noted is used: it says the same, and what is changed in it is believed.
    let again = ShardDataset::open(&paths, options.clone()).unwrap();
    assert_eq!((&again.shards, problems(&again)), (&fresh.shards, problems(&fresh)));
    let text = fs::read_to_string(&files()[0]).unwrap();
    fs::write(&files()[0], text.replace("a.pngc.png", "X.pngc.png")).unwrap();
    assert_eq!(ShardDataset::open(&paths, options.clone()).unwrap().shards[0].name(0), "X.png");
    // One that cannot be is not: damaged, or with a length that would not fit into memory.
    for damaged in [text[..text.len() / 2].to_string(), text.replacen("[[[512,", "[[[512,9999999999", 1)] {
        assert_ne!(damaged, text);
        fs::write(&files()[0], damaged).unwrap();
        let set = ShardDataset::open(&paths, options.clone()).unwrap();
        assert_eq!(set.get(0).unwrap().caption, "shade 1");
    }
    // Another shard of that name, and other options.
    write(&dir, &[("00.tar", Shard::default().sample("d", 4).end())]);
    assert_eq!(ShardDataset::open(&paths, options.clone()).unwrap().caption(0).unwrap(), "shade 4");
    let other = ShardOptions { captions: vec!["txt".parse().unwrap()], ..options };
    ShardDataset::open(&paths, other).unwrap();
    assert_eq!(files().len(), 2);
}

#[test]
fn damaged_bytes_never_panic() {
    use rand::{RngExt, SeedableRng};
    let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(1);
    let complete = Shard::default().sample("a", 1).file("b.json", "{}").sample("c", 3).end();
    for round in 0..300 {
        let mut bytes = complete.clone();
        for _ in 0..rng.random_range(1..20) {
            let at = rng.random_range(0..bytes.len());
            bytes[at] = rng.random();
        }
        bytes.truncate(rng.random_range(0..=bytes.len()));
        let bytes = if round % 2 == 0 { gz(&bytes) } else { bytes };
        if let (_dir, Ok(set)) = open_one(bytes) {
            for i in 0..set.len() {
                let _ = (set.get(i), set.caption(i));
            }
        }
    }
}
