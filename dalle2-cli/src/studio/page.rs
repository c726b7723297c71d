//! The page, embedded in the program.

use axum::extract::Path;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::failure::Failure;

pub const HTML: &str = include_str!("page/index.html");

/// Name, type and text of what the page loads.
pub const ASSETS: &[(&str, &str, &str)] = &[
    ("studio.css", CSS, include_str!("page/studio.css")),
    ("studio.js", SCRIPT, include_str!("page/studio.js")),
    ("api.js", SCRIPT, include_str!("page/api.js")),
    ("sources.js", SCRIPT, include_str!("page/sources.js")),
    ("forms.js", SCRIPT, include_str!("page/forms.js")),
    ("brush.js", SCRIPT, include_str!("page/brush.js")),
    ("viewer.js", SCRIPT, include_str!("page/viewer.js")),
    ("lists.js", SCRIPT, include_str!("page/lists.js")),
    ("icon.svg", "image/svg+xml", include_str!("page/icon.svg")),
];
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

pub async fn html() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], HTML).into_response()
}

pub async fn asset(Path(name): Path<String>) -> Result<Response, Failure> {
    match ASSETS.iter().find(|(own, ..)| *own == name) {
        Some((_, kind, text)) => Ok(([(header::CONTENT_TYPE, *kind)], *text).into_response()),
        None => Err(Failure::new(StatusCode::NOT_FOUND, format!("the page lacks a part {name:?}"))),
    }
}
