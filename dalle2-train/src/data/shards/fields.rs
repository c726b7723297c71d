//! Where the caption of a sample is.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use dalle2_core::ConfigError;

/// A member of a sample that may hold its caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaptionField {
    /// A text file with this extension: the first line that is not blank.
    Text(String),
    /// A JSON file with this extension: the text under the key. A dot in the key leads into an object, a number into an
    /// array, so `captions.0` is the first of several.
    Json {
        /// The extension.
        extension: String,
        /// The key.
        key: String,
    },
    /// A text file with this extension that holds a number: the name of that class.
    Class {
        /// The extension.
        extension: String,
        /// The names of the classes, from 0.
        names: Vec<String>,
    },
}

impl CaptionField {
    /// `.txt`, then `caption` in `.json`.
    pub fn defaults() -> Vec<Self> {
        let json = Self::Json { extension: "json".into(), key: "caption".into() };
        vec![Self::Text("txt".into()), json]
    }

    /// The extension of the member.
    pub fn extension(&self) -> &str {
        match self {
            Self::Text(extension) | Self::Json { extension, .. } | Self::Class { extension, .. } => extension,
        }
    }

    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.extension().is_empty() || matches!(self, Self::Json { key, .. } if key.is_empty()) {
            let expected = "must be an extension, and for JSON a key: `txt` or `json:caption`";
            return Err(ConfigError::new("captions", self, expected));
        }
        Ok(())
    }

    /// The caption's text, which may still be blank.
    pub(super) fn text(&self, bytes: &[u8]) -> Result<String, String> {
        let utf8 = || std::str::from_utf8(bytes).map_err(|_| format!(".{}: is not UTF-8 text", self.extension()));
        match self {
            Self::Text(_) => Ok(utf8()?.to_owned()),
            Self::Json { extension, key } => {
                let value: Value = serde_json::from_slice(bytes).map_err(|e| format!(".{extension}: {e}"))?;
                match lookup(&value, key) {
                    Some(Value::String(text)) => Ok(text.clone()),
                    Some(_) => Err(format!(".{extension}: `{key}` is not text")),
                    None => Err(format!(".{extension}: lacks `{key}`")),
                }
            }
            Self::Class { extension, names } => {
                let number: usize = utf8()?.trim().parse().map_err(|_| format!(".{extension}: is not a number"))?;
                let message = || format!(".{extension}: is {number}, but there are {} classes", names.len());
                names.get(number).cloned().ok_or_else(message)
            }
        }
    }
}

/// The value under a key; keys that contain dots are looked for as a whole first.
fn lookup<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    if let Some(found) = value.get(key) {
        return Some(found);
    }
    key.split('.').try_fold(value, |value, part| match value {
        Value::Array(items) => items.get(part.parse::<usize>().ok()?),
        other => other.get(part),
    })
}

impl fmt::Display for CaptionField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(extension) => f.write_str(extension),
            Self::Json { extension, key } => write!(f, "{extension}:{key}"),
            Self::Class { extension, names } => write!(f, "{extension} of {} classes", names.len()),
        }
    }
}

impl FromStr for CaptionField {
    type Err = ConfigError;

    /// `txt`, or `json:caption` for a key in a JSON file.
    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let text = text.trim_start_matches('.');
        let field = match text.split_once(':') {
            Some((extension, key)) => Self::Json { extension: extension.to_lowercase(), key: key.into() },
            None => Self::Text(text.to_lowercase()),
        };
        field.validate().map(|()| field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_comes_from_where_the_field_says() {
        let json: CaptionField = "json:caption".parse().unwrap();
        assert_eq!(json.text(br#"{"caption": "a cat", "width": 3}"#).unwrap(), "a cat");
        let deep: CaptionField = ".JSON:texts.1.en".parse().unwrap();
        assert_eq!(deep.text(br#"{"texts": [0, {"en": "two"}]}"#).unwrap(), "two");
        let dotted: CaptionField = "json:a.b".parse().unwrap();
        assert_eq!(dotted.text(br#"{"a.b": "whole", "a": {"b": "inner"}}"#).unwrap(), "whole");
        let class = CaptionField::Class { extension: "cls".into(), names: vec!["cat".into(), "dog".into()] };
        assert_eq!(class.text(b" 1\n").unwrap(), "dog");
        assert_eq!("txt".parse::<CaptionField>().unwrap().text(b"x\ny").unwrap(), "x\ny");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let json: CaptionField = "json:caption".parse().unwrap();
        for (bytes, expected) in [
            (&br#"{"caption": 3}"#[..], "not text"),
            (br#"{"text": "x"}"#, "lacks `caption`"),
            (br#"["x"]"#, "lacks `caption`"),
            (br#"{"caption": "cut"#, "EOF"),
            (b"", "EOF"),
        ] {
            let reason = json.text(bytes).unwrap_err();
            assert!(reason.contains(expected) && reason.contains(".json"), "{reason}");
        }
        assert!("txt".parse::<CaptionField>().unwrap().text(b"\xff").unwrap_err().contains("UTF-8"));
        let class = CaptionField::Class { extension: "cls".into(), names: vec!["cat".into()] };
        assert!(class.text(b"7").unwrap_err().contains("1 classes"));
        assert!(class.text(b"-1").unwrap_err().contains("number"));
        assert!("".parse::<CaptionField>().is_err() && "json:".parse::<CaptionField>().is_err());
    }
}
