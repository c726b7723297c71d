use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::json;

use super::*;
use crate::FloatType;
use crate::store::{WeightsWriter, write_json};

fn fixture(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/pytorch").join(name)
}

/// The tensors of a table by name.
fn values(weights: &Weights) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let tensor = |name: &str| (weights.shape(name).unwrap().to_vec(), weights.read(name).unwrap());
    weights.names().map(|name| (name.to_owned(), tensor(name))).collect()
}

fn write(path: &Path, tensors: &[(&str, &[usize])]) {
    let shapes = tensors.iter().map(|(name, shape)| (name.to_string(), shape.to_vec())).collect();
    let mut writer = WeightsWriter::create(path, FloatType::F32, shapes, &BTreeMap::new()).unwrap();
    for (i, (name, shape)) in tensors.iter().enumerate() {
        let numel: usize = shape.iter().product();
        let values: Vec<f32> = (0..numel).map(|v| (v + 100 * i) as f32).collect();
        writer.write(name, &values).unwrap();
    }
    writer.finish().unwrap();
}

#[test]
fn every_kind_of_state_dict_holds_the_values_that_pytorch_wrote() {
    let expected = values(&Weights::open(fixture("expected.safetensors")).unwrap());
    assert_eq!(expected.len(), 10);
    for name in ["state.pt", "legacy.pt", "protocol4.pt", "wrapped.ckpt"] {
        assert_eq!(values(&Weights::open(fixture(name)).unwrap()), expected, "{name}");
    }
}

#[test]
fn a_torchscript_archive_holds_the_tensors_of_its_modules() {
    let expected = values(&Weights::open(fixture("script.safetensors")).unwrap());
    assert_eq!(values(&Weights::open(fixture("script.pt")).unwrap()), expected);
}

/// The file asks for a command to be run. What it asks for is data to us.
#[test]
fn code_in_a_pickle_is_not_executed() {
    let weights = Weights::open(fixture("code.pt")).unwrap();
    assert_eq!(values(&weights), values(&Weights::open(fixture("expected.safetensors")).unwrap()));
    assert!(!Path::new("executed").exists());
}

#[test]
fn integers_are_listed_and_not_read() {
    let mut weights = Weights::open(fixture("integers.pt")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["plain", "position_ids", "step"]);
    let error = weights.read("position_ids").unwrap_err().to_string();
    assert!(error.contains("integers.pt") && error.contains("position_ids") && error.contains("I64"), "{error}");
    weights.ignore(|name| name == "position_ids");
    assert_eq!(weights.names().len(), 2);
}

#[test]
fn what_is_not_a_state_dict_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, expected) in [
        (fixture("module.pt"), "torch.nn.modules.linear.Linear"),
        (fixture("make_fixtures.py"), ".safetensors"),
        (file("a.bin", b"nonsense, neither archive nor pickle"), "neither a ZIP archive"),
        (file("b.bin", b""), "neither a ZIP archive"),
        (file("c.pt", b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "data.pkl"),
        (file("d.safetensors", b""), "header"),
        (file("e.safetensors", &[0xff; 30]), "header of 18446744073709551615 bytes"),
        (dir.path().join("absent.safetensors"), "absent.safetensors"),
    ] {
        let error = Weights::open(&path).unwrap_err().to_string();
        assert!(error.contains(expected) && error.contains(path.to_str().unwrap()), "{error}");
    }
}

#[test]
fn tensors_can_be_renamed_split_and_transposed_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    write(&path, &[("in_proj", &[6, 2]), ("proj", &[2, 3]), ("scale", &[])]);
    let mut weights = Weights::open(&path).unwrap();
    weights.split("in_proj", &["q", "k", "v"].map(str::to_owned)).unwrap();
    weights.transpose("proj").unwrap();
    weights.rename(|name| format!("text.{name}")).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["text.k", "text.proj", "text.q", "text.scale", "text.v"]);
    assert_eq!(weights.read("text.k").unwrap(), [4.0, 5.0, 6.0, 7.0]);
    assert_eq!(weights.shape("text.proj"), Some(&[3, 2][..]));
    assert_eq!(weights.read("text.proj").unwrap(), [100.0, 103.0, 101.0, 104.0, 102.0, 105.0]);
    // A transposed tensor can be split as well.
    weights.split("text.proj", &["a", "b", "c"].map(str::to_owned)).unwrap();
    assert_eq!(weights.read("b").unwrap(), [101.0, 104.0]);

    assert!(weights.split("text.q", &["b".into(), "d".into()]).unwrap_err().to_string().contains("already"));
    assert!(weights.split("text.q", &["d".into(), "e".into(), "f".into()]).is_err());
    assert!(weights.split("text.scale", &["d".into()]).is_err() && weights.transpose("text.scale").is_err());
    assert!(weights.rename(|_| "same".into()).unwrap_err().to_string().contains("same"));
}

#[test]
fn shards_are_read_as_one_and_every_fault_of_them_is_listed() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("model.safetensors.index.json");
    let place = |map: serde_json::Value| write_json(&index, &json!({"metadata": {}, "weight_map": map})).unwrap();
    write(&dir.path().join("m-1.safetensors"), &[("a", &[2]), ("b", &[3])]);
    write(&dir.path().join("m-2.safetensors"), &[("c", &[1])]);
    place(json!({"a": "m-1.safetensors", "b": "m-1.safetensors", "c": "m-2.safetensors"}));
    let weights = Weights::open(&index).unwrap();
    assert_eq!(weights.names().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!((weights.read("b").unwrap(), weights.read("c").unwrap()), (vec![100.0, 101.0, 102.0], vec![0.0]));

    let message = |map| {
        place(map);
        Weights::open(&index).unwrap_err().to_string()
    };
    let error = message(json!({"a": "m-1.safetensors", "b": "m-2.safetensors", "d": "m-3.safetensors"}));
    for fault in [
        "b is in m-1.safetensors; the index says m-2.safetensors",
        "b is not in m-2.safetensors",
        "c is in m-2.safetensors and not in the index",
        "shard m-3.safetensors is missing, which should hold d",
        "model.safetensors.index.json",
    ] {
        assert!(error.contains(fault), "{fault:?} in {error}");
    }
    for outside in ["../m-1.safetensors", "/etc/passwd", ".."] {
        assert!(message(json!({"a": outside})).contains("beside the index"));
    }
    assert!(message(json!({"a": 1})).contains("index.json"));
    // An index that names itself would be read for ever.
    assert!(message(json!({"a": "model.safetensors.index.json"})).contains("beside the index"));
}

/// Whatever happens to a file, opening and reading it ends, in an error or in tensors that fit in the file.
#[test]
fn damaged_files_never_panic_nor_ask_for_more_than_they_hold() {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let dir = tempfile::tempdir().unwrap();
    let mut refused = 0;
    let names = ["expected.safetensors", "state.pt", "legacy.pt", "script.pt", "protocol4.pt"];
    for name in names {
        let original = std::fs::read(fixture(name)).unwrap();
        let extension = name.rsplit('.').next().unwrap();
        let path = dir.path().join(format!("damaged.{extension}"));
        for _ in 0..250 {
            let mut bytes = original.clone();
            for _ in 0..rng.random_range(1..4) {
                damage(&mut bytes, &mut rng);
            }
            std::fs::write(&path, &bytes).unwrap();
            match Weights::open(&path) {
                Err(error) => {
                    assert!(error.to_string().contains("damaged."), "{error}");
                    refused += 1;
                }
                Ok(weights) => {
                    for tensor in weights.names() {
                        let numel: usize = weights.shape(tensor).unwrap().iter().product();
                        assert!(numel <= bytes.len(), "{name}: {tensor} of {numel} elements");
                        let _ = weights.read(tensor);
                    }
                }
            }
        }
    }
    assert!(refused > 250, "only {refused} of 1250 damaged files were refused");
}

/// Cuts, fills, moves or overwrites a piece, mostly with numbers that hurt.
fn damage(bytes: &mut Vec<u8>, rng: &mut ChaCha8Rng) {
    if bytes.is_empty() {
        return;
    }
    let at = rng.random_range(0..bytes.len());
    match rng.random_range(0..6) {
        0 => bytes.truncate(at),
        1 => bytes[at] = rng.random(),
        2 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'.', b'(', b'9'][rng.random_range(0..8)],
        3 => {
            let end = (at + rng.random_range(1..9)).min(bytes.len());
            bytes[at..end].fill([0, 0xff, b'9'][rng.random_range(0..3)]);
        }
        4 => {
            let end = (at + rng.random_range(1..64)).min(bytes.len());
            bytes.drain(at..end);
        }
        _ => {
            let piece = bytes[at..(at + 32).min(bytes.len())].to_vec();
            let to = rng.random_range(0..bytes.len());
            bytes.splice(to..to, piece);
        }
    }
}
