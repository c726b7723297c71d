//! The error of an invalid configuration value.

/// An invalid value in a configuration or request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` = {value}: {expected}")]
pub struct ConfigError {
    /// Path of the field, for example `decoder.unet.channels`.
    pub field: String,
    /// The value.
    pub value: String,
    /// The requirement that the value does not meet.
    pub expected: String,
}

impl ConfigError {
    /// Creates an error for a field, its value and the requirement, for example "must be at least 1".
    pub fn new(field: impl Into<String>, value: impl std::fmt::Display, expected: impl Into<String>) -> Self {
        Self { field: field.into(), value: value.to_string(), expected: expected.into() }
    }

    /// Prefixes the field with the name of its component: `channels` becomes `decoder.channels`.
    pub fn within(mut self, component: &str) -> Self {
        self.field = format!("{component}.{}", self.field);
        self
    }
}
