//! The error of a configuration value that cannot work.

/// A field of a configuration or request whose value cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` = {value}: {expected}")]
pub struct ConfigError {
    /// Path of the field, for example `decoder.unet.channels`.
    pub field: String,
    /// The value that was given, as text.
    pub value: String,
    /// What would be right.
    pub expected: String,
}

impl ConfigError {
    /// An error for `field`, whose `value` should have been what `expected` says.
    pub fn new(field: impl Into<String>, value: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), expected: expected.into() }
    }

    /// Prefixes the field with the component that holds it: `channels` becomes `decoder.channels`.
    pub fn within(mut self, component: &str) -> Self {
        self.field = format!("{component}.{}", self.field);
        self
    }
}
