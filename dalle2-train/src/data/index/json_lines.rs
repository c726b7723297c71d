//! Rows as JSON objects, one in each line.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use serde_json::{Map, Value};

use super::{Columns, List, Row};
use dalle2_core::{Error, Result};

/// Adds the rows to `list`, and returns the expected form.
pub(super) fn read(path: &Path, columns: &Columns, list: &mut List<'_>) -> Result<String> {
    let file = File::open(path).map_err(|e| Error::io(path, e))?;
    for (number, line) in (1..).zip(BufReader::new(file).split(b'\n')) {
        let line = line.map_err(|e| Error::io(path, e))?;
        let line = if number == 1 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line) } else { &line };
        if !line.trim_ascii().is_empty() {
            list.add(number, row(line, columns));
        }
    }
    Ok(format!(r#"lines like {{"{}": "cats/tom.png", "{}": "a grey cat"}}"#, columns.image, columns.caption))
}

fn row(line: &[u8], columns: &Columns) -> Row {
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|e| format!("not an entry: {e}"))?;
    let mut text = |name: &str| match object.remove(name) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{name}` is not text")),
        None => Err(format!("not an entry: missing field `{name}`")),
    };
    Ok((text(&columns.image)?, text(&columns.caption)?))
}
