//! Every component and both kinds of generation against the reference implementation; see `tests/fixtures/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use dalle2::Device;
use dalle2_tools::parity::compare;
use safetensors::SafeTensors;

const TOLERANCE: f64 = 1e-4;

/// A checkpoint below the workspace's `tests/fixtures`.
fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() {
            copy_dir(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// Adds to one value of a file of 32-bit floats.
fn add_to_value(path: &Path, tensor: &str, index: usize, delta: f32) {
    let mut bytes = std::fs::read(path).unwrap();
    let view = SafeTensors::deserialize(&bytes).unwrap();
    let data = view.tensor(tensor).unwrap().data().as_ptr() as usize;
    let at = data - bytes.as_ptr() as usize + 4 * index;
    let value = f32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) + delta;
    bytes[at..at + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn every_recording_of_both_checkpoints_is_reproduced() {
    for name in ["tiny-unclip", "tall-unclip"] {
        let dir = fixture(name);
        let rows = compare(&dir, &Device::flex(), TOLERANCE).unwrap();
        let failed: Vec<_> = rows.iter().filter(|row| !row.pass).collect();
        assert!(failed.is_empty(), "{name}: {failed:#?}");
        for entry in std::fs::read_dir(dir.join("fixtures")).unwrap() {
            let recording = entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned();
            assert!(rows.iter().any(|row| row.name.starts_with(&format!("{recording}/"))), "{name}: {recording}");
        }
        for row in rows.iter().filter(|row| ["ids", "timesteps"].iter().any(|exact| row.name.contains(exact))) {
            assert_eq!(row.max_abs, 0.0, "{name}: {}", row.name);
        }
    }
}

#[test]
fn a_change_of_one_value_fails_the_rows_that_read_it() {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&fixture("tall-unclip"), dir.path());
    let file = dir.path().join("pipeline/super_res_last/diffusion_pytorch_model.safetensors");
    add_to_value(&file, "mid_block.resnets.1.conv2.bias", 3, 0.5);
    let rows = compare(dir.path(), &Device::flex(), TOLERANCE).unwrap();
    let passes = |name: &str| rows.iter().find(|row| row.name == name).unwrap().pass;
    for name in ["super_res/out_last", "e2e_text2img/super_res/steps", "e2e_text2img/image", "e2e_variation/image"] {
        assert!(!passes(name), "{name}");
    }
    assert!(passes("super_res/out_first") && passes("decoder/out"));
}
