//! The files of a tokenizer in a model directory of Hugging Face's layout.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::merges::{END_TEXT, START_TEXT};
use crate::store::{Fields, read_json, write_file};
use crate::{Error, Result};

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
/// All files of a tokenizer.
const FILES: [&str; 6] = ["tokenizer.json", "vocab.json", "merges.txt", CONFIG, SPECIAL, ADDED];
/// Maximum size of a file in bytes; CLIP's largest has two million.
const MAX_BYTES: u64 = 64 << 20;

/// Files by name.
pub(super) type Files = Vec<(String, Vec<u8>)>;

/// Settings beside the vocabulary.
#[derive(Debug, Clone, Default)]
pub(super) struct Settings {
    /// The padding token and its file.
    pub(super) pad: Option<(String, PathBuf)>,
    /// The length of padded sequences.
    pub(super) max_length: Option<usize>,
}

/// Reads `tokenizer_config.json` and `special_tokens_map.json`, if they exist. The second one takes precedence over a
/// first one in the older form, without `added_tokens_decoder`.
pub(super) fn read_settings(dir: &Path) -> Result<Settings> {
    let mut settings = Settings::default();
    let mut is_complete = false;
    let path = dir.join(CONFIG);
    if path.is_file() {
        let fields = Fields::read(&path)?;
        is_complete = fields.object().contains_key("added_tokens_decoder");
        settings.pad = pad_token(&fields)?;
        // "No limit" is a number like 1e30.
        let length: Option<f64> = fields.get("model_max_length", None)?;
        settings.max_length = length.filter(|n| (1.0..1e9).contains(n)).map(|n| n as usize);
    }
    let path = dir.join(SPECIAL);
    if path.is_file() && !is_complete {
        settings.pad = pad_token(&Fields::read(&path)?)?.or(settings.pad);
    }
    Ok(settings)
}

/// Reads `pad_token`: a text, or an object with the text as `content`.
fn pad_token(fields: &Fields) -> Result<Option<(String, PathBuf)>> {
    let token = match fields.object().get("pad_token") {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content"),
        token => token,
    };
    match token {
        Some(Value::String(token)) => Ok(Some((token.clone(), fields.path().to_owned()))),
        _ => Err(fields.error("pad_token", "must be a text or an object with a `content`")),
    }
}

/// Reads tokens outside the vocabulary with their ids: `added_tokens.json`, and `added_tokens_decoder` of
/// `tokenizer_config.json`.
pub(super) fn read_added_tokens(dir: &Path) -> Result<Vec<(String, u32)>> {
    let mut tokens = Vec::new();
    let path = dir.join(ADDED);
    if path.is_file() {
        tokens.extend(read_json::<BTreeMap<String, u32>>(&path)?);
    }
    let path = dir.join(CONFIG);
    if path.is_file()
        && let Some(Value::Object(added)) = Fields::read(&path)?.object().get("added_tokens_decoder")
    {
        for (id, token) in added {
            let content = token.get("content").and_then(Value::as_str);
            let (Ok(id), Some(content)) = (id.parse(), content) else {
                let message = format!("`added_tokens_decoder.{id}` must be an id with an object that has a `content`");
                return Err(Error::format(&path, message));
            };
            tokens.push((content.to_owned(), id));
        }
    }
    Ok(tokens)
}

/// Reads all files of the tokenizer in `dir`, to write them back unchanged.
pub(super) fn read_files(dir: &Path) -> Result<Files> {
    let mut files = Vec::new();
    for name in FILES {
        let path = dir.join(name);
        if path.is_file() {
            files.push((name.to_owned(), read_file(&path)?));
        }
    }
    Ok(files)
}

/// Reads a regular file of at most 64 MiB.
pub(super) fn read_file(path: &Path) -> Result<Vec<u8>> {
    let io = |e| Error::io(path, e);
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(Error::format(path, "is not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(io)?.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::format(path, format!("exceeds the maximum size of {MAX_BYTES} bytes")));
    }
    Ok(bytes)
}

/// Writes the files of a tokenizer.
pub(super) fn write_files(dir: &Path, files: &Files) -> Result<()> {
    files.iter().try_for_each(|(name, bytes)| write_file(dir.join(name), bytes))
}

/// Creates the files of the embedded tokenizer.
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
