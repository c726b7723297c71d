//! Answers that say what is wrong.

use axum::Json;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::limits;

/// A status, and what is wrong in words.
#[derive(Debug)]
pub struct Failure {
    status: StatusCode,
    message: String,
}

impl Failure {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// A readable request with invalid contents.
    pub fn unprocessable(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, error.to_string())
    }

    /// A body that is too large.
    pub fn too_large(bytes: u64) -> Self {
        let message = format!("the body has {bytes} bytes: at most {} are read", limits::UPLOAD);
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    fn of_body(status: StatusCode, text: String, limit: usize) -> Self {
        match status {
            StatusCode::PAYLOAD_TOO_LARGE => {
                Self::new(status, format!("the body is too large: at most {limit} bytes are read"))
            }
            _ => Self::new(status, text),
        }
    }
}

impl From<JsonRejection> for Failure {
    fn from(rejection: JsonRejection) -> Self {
        Self::of_body(rejection.status(), rejection.body_text(), limits::JSON)
    }
}

impl From<BytesRejection> for Failure {
    fn from(rejection: BytesRejection) -> Self {
        Self::of_body(rejection.status(), rejection.body_text(), limits::UPLOAD)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(json!({ "error": self.message }))).into_response()
    }
}
