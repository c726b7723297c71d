//! The files of a tokenizer in a model directory of Hugging Face's form.

use std::path::Path;

use serde_json::{Map, Value, json};

use super::merges::{END_TEXT, START_TEXT};
use crate::store::{Fields, write_file};
use crate::{Error, Result};

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
/// Everything that belongs to a tokenizer.
const FILES: [&str; 6] = ["tokenizer.json", "vocab.json", "merges.txt", CONFIG, SPECIAL, "added_tokens.json"];
/// Longest file that is kept, in bytes: CLIP's longest has two million.
const MAX_BYTES: u64 = 64 << 20;

/// Files by name.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// What the files say beside the vocabulary.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// The padding token, with the file that names it.
    pub(super) pad: Option<(String, std::path::PathBuf)>,
    /// The length that sequences are padded to.
    pub(super) max_length: Option<usize>,
}

/// Reads `tokenizer_config.json` and `special_tokens_map.json`, as far as they are there. The second one counts where
/// the first one is of the older form, which has no `added_tokens_decoder`.
pub(super) fn read_settings(dir: &Path) -> Result<Settings> {
    let mut settings = Settings::default();
    let mut whole = false;
    let path = dir.join(CONFIG);
    if path.is_file() {
        let fields = Fields::read(&path)?;
        whole = fields.object().contains_key("added_tokens_decoder");
        settings.pad = pad_token(&fields)?;
        // Without a limit the file has a number like 1e30.
        let length: Option<f64> = fields.get("model_max_length", None)?;
        settings.max_length = length.filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
    }
    let path = dir.join(SPECIAL);
    if path.is_file() && !whole {
        settings.pad = pad_token(&Fields::read(&path)?)?.or(settings.pad);
    }
    Ok(settings)
}

/// A token is its text, or an object that holds it as `content`.
fn pad_token(fields: &Fields) -> Result<Option<(String, std::path::PathBuf)>> {
    let token = match fields.object().get("pad_token") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content"),
        token => token,
    };
    match token {
        Some(Value::String(token)) => Ok(Some((token.clone(), fields.path().to_owned()))),
        _ => Err(fields.error("pad_token", "must be a token or an object with its `content`")),
    }
}

/// The files that are in `dir`, to be written again as they are.
pub(super) fn read_files(dir: &Path) -> Result<Files> {
    let mut files = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        if path.is_file() {
            let size = std::fs::metadata(&path).map_err(|e| Error::io(&path, e))?.len();
            if size > MAX_BYTES {
                return Err(Error::format(&path, format!("is {size} bytes long, expected at most {MAX_BYTES}")));
            }
            files.push((name.to_owned(), std::fs::read(&path).map_err(|e| Error::io(&path, e))?));
        }
    }
    Ok(files)
}

/// Writes the files of a tokenizer that came from a directory.
pub(super) fn write_files(dir: &Path, files: &Files) -> Result<()> {
    files.iter().try_for_each(|(name, bytes)| write_file(dir.join(name), bytes))
}

/// The files of a tokenizer that did not.
pub(super) fn new_files(vocabulary: &Map<String, Value>, merges: &str, pad: &str, context_length: usize) -> Files {
    let special = json!({
        "bos_token": START_TEXT,
        "eos_token": END_TEXT,
        "pad_token": pad,
        "unk_token": END_TEXT,
    });
    let mut config = json!({
        "add_prefix_space": false,
        "do_lower_case": true,
        "errors": "replace",
        "model_max_length": context_length,
        "tokenizer_class": "CLIPTokenizer",
    });
    if let (Some(config), Some(special)) = (config.as_object_mut(), special.as_object()) {
        config.extend(special.clone());
    }
    let text = |value: &Value| format!("{value:#}\n").into_bytes();
    vec![
        ("vocab.json".into(), Value::Object(vocabulary.clone()).to_string().into_bytes()),
        ("merges.txt".into(), format!("#version: 0.2\n{merges}").into_bytes()),
        (CONFIG.into(), text(&config)),
        (SPECIAL.into(), text(&special)),
    ]
}
