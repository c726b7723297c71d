//! Every part and both kinds of generation against the reference implementation; see `fixtures/README.md`.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#[path = "../examples/parity/compare/mod.rs"]
mod compare;
mod shared;

use compare::compare;
use dalle2::Device;
use shared::{copy_dir, edit_tensors, fixture};

const TOLERANCE: f64 = 1e-4;

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
    edit_tensors(&file, |name, values| {
        if name == "mid_block.resnets.1.conv2.bias" {
            values[3] += 0.5;
        }
    });
    let rows = compare(dir.path(), &Device::flex(), TOLERANCE).unwrap();
    let passes = |name: &str| rows.iter().find(|row| row.name == name).unwrap().pass;
    for name in ["super_res/out_last", "e2e_text2img/super_res/steps", "e2e_text2img/image", "e2e_variation/image"] {
        assert!(!passes(name), "{name}");
    }
    assert!(passes("super_res/out_first") && passes("decoder/out"));
}
