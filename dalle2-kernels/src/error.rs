//! The error of an invalid configuration value.

use std::fmt;

/// The `expected` of an error whose advice is in `hint` alone.
const ANOTHER_VALUE: &str = "another value";

/// An invalid value of a configuration or a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// Path of the field, for example `decoder.unet.channels`.
    pub field: String,
    /// The invalid value, as text.
    pub value: String,
    /// The valid values, as a phrase after "must be".
    pub expected: String,
    /// Further advice.
    pub hint: Option<String>,
}

impl std::error::Error for ConfigError {}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` = {}: ", self.field, self.value)?;
        match &self.hint {
            Some(hint) if self.expected == ANOTHER_VALUE => f.write_str(hint),
            Some(hint) => write!(f, "must be {}: {hint}", self.expected),
            None => write!(f, "must be {}", self.expected),
        }
    }
}

impl ConfigError {
    /// Creates an error for an invalid `value` of `field`. `expected` reads "must be …", with a hint after a colon if there
    /// is one; any other text is a hint alone.
    pub fn new(field: impl Into<String>, value: impl fmt::Display, expected: impl Into<String>) -> Self {
        let expected = expected.into();
        let (expected, hint) = match expected.strip_prefix("must be ") {
            Some(phrase) => match phrase.split_once(": ") {
                Some((phrase, hint)) => (phrase.to_owned(), Some(hint.to_owned())),
                None => (phrase.to_owned(), None),
            },
            None => (ANOTHER_VALUE.to_owned(), Some(expected)),
        };
        Self { field: field.into(), value: value.to_string(), expected, hint }
    }

    /// Returns the name of the request's setter: `decoder_steps` for `decoder.steps`, `guidance` for `decoder.guidance`.
    pub fn setter(&self) -> String {
        match self.field.as_str() {
            "decoder.guidance" => "guidance".to_owned(),
            field => field.replace('.', "_"),
        }
    }

    /// Prefixes the field with the name of its component: `channels` becomes `decoder.channels`.
    pub fn within(mut self, component: &str) -> Self {
        self.field = format!("{component}.{}", self.field);
        self
    }
}

#[cfg(test)]
mod tests {
    use super::ConfigError;

    #[test]
    fn the_parts_of_an_error_form_its_message() {
        let error = ConfigError::new("steps", 0, "must be between 1 and 1000").within("decoder");
        assert_eq!((error.expected.as_str(), error.setter().as_str()), ("between 1 and 1000", "decoder_steps"));
        assert_eq!(error.to_string(), "`decoder.steps` = 0: must be between 1 and 1000");
        let error = ConfigError::new("size", 3, "must be 4: the stride");
        assert_eq!((error.expected.as_str(), error.hint.as_deref()), ("4", Some("the stride")));
        assert_eq!(error.to_string(), "`size` = 3: must be 4: the stride");
        assert_eq!(ConfigError::new("a", 1, "needs a b").to_string(), "`a` = 1: needs a b");
    }
}
