//! Every setting of a pipeline in the layout of diffusers replaced by every kind of wrong value: opening it gives a
//! pipeline or an error that names the file, and nothing panics, hangs or fills the memory.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod shared;

use std::panic::{AssertUnwindSafe, catch_unwind};

use dalle2::{Device, LoadOptions, Pipeline, Residency};
use serde_json::{Value, json};
use shared::{files, image_variation, text_to_image};

/// What takes the place of a value.
fn replacements() -> Vec<Value> {
    vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(7),
        json!(1_000_000_007u64),
        json!(1e300),
        json!("…"),
        json!([0, -1]),
        json!({}),
    ]
}

/// Every value that lies in `value`, by the way to it.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            fields.iter().for_each(|(key, value)| {
                let pointer = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
                found.push(pointer.clone());
                pointers(value, &pointer, found);
            });
        }
        Value::Array(items) => {
            if let Some(first) = items.first() {
                found.push(format!("{at}/0"));
                pointers(first, &format!("{at}/0"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn no_setting_makes_opening_panic_or_run_away() {
    // With one stage at a time, opening reads the headers of the diffusion networks' weights alone.
    let options = LoadOptions::new(&Device::flex()).residency(Residency::OneStage);
    let (mut opened, mut refused) = (0, 0);
    for (dir, only) in
        [(text_to_image("tall-unclip"), ""), (image_variation("tall-unclip"), "image_encoder feature_extractor")]
    {
        for (name, path) in files(dir.path()) {
            let folder = name.split('/').next().unwrap();
            // The vocabulary has a thousand entries of one kind.
            if !name.ends_with(".json") || name == "tokenizer/vocab.json" || !(only.is_empty() || only.contains(folder))
            {
                continue;
            }
            let original = std::fs::read(&path).unwrap();
            let whole: Value = serde_json::from_slice(&original).unwrap();
            let mut places = Vec::new();
            pointers(&whole, "", &mut places);
            for place in places {
                for replacement in replacements() {
                    let mut changed = whole.clone();
                    *changed.pointer_mut(&place).unwrap() = replacement.clone();
                    std::fs::write(&path, changed.to_string()).unwrap();
                    let result =
                        catch_unwind(AssertUnwindSafe(|| Pipeline::from_pretrained_with(dir.path(), &options)));
                    match result {
                        Ok(Ok(_)) => opened += 1,
                        Ok(Err(error)) => {
                            refused += 1;
                            let message = error.to_string();
                            // Two parts that are each in order may not fit each other.
                            let named = message.contains(folder) || message.contains("these parts make no pipeline");
                            // What a network lacks shows beside its weights; sizes are compared between folders.
                            let related = ["decoder", "super_res_first", "super_res_last", "text_proj", "prior"];
                            assert!(
                                named || related.iter().any(|part| message.contains(part)),
                                "{name}{place} = {replacement}: {message}"
                            );
                        }
                        Err(_) => panic!("{name}{place} = {replacement} panics"),
                    }
                }
            }
            std::fs::write(&path, &original).unwrap();
        }
    }
    assert!(opened > 100 && refused > 500, "{opened} opened, {refused} refused");
}
