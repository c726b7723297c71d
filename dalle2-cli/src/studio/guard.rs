//! Access control: only this page and programs on this machine.
//!
//! A page of another origin can send requests to 127.0.0.1, and by DNS rebinding it could read the answers too. The
//! `Host` must therefore be this address, and the origin, if the browser sends one, must be this page.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName, HeaderValue};
use axum::http::{Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::failure::Failure;
use super::limits;
use super::server::Studio;

/// Headers that restrict the page to its own origin and forbid frames.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CACHE_CONTROL, "no-store"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
];

/// Checks a request before anything else looks at it, and bounds the time that it takes.
pub async fn guard(State(studio): State<Arc<Studio>>, request: Request, next: Next) -> Response {
    let mut response = match check(&studio.hosts, &request) {
        Err(failure) => failure.into_response(),
        Ok(()) => bounded(&studio, request, next).await.unwrap_or_else(Failure::into_response),
    };
    for (name, value) in HEADERS {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

async fn bounded(studio: &Studio, request: Request, next: Next) -> Result<Response, Failure> {
    let late = |_| Failure::new(StatusCode::REQUEST_TIMEOUT, "the request took too long to arrive");
    let reads_body = request.method() == Method::POST;
    let answer = async {
        // Held until the body has been read and answered.
        let _permit = if reads_body { studio.bodies.acquire().await.ok() } else { None };
        next.run(request).await
    };
    tokio::time::timeout(limits::REQUEST_TIME, answer).await.map_err(late)
}

fn check(hosts: &[String], request: &Request) -> Result<(), Failure> {
    let headers = request.headers();
    let forbidden = |message: String| Failure::new(StatusCode::FORBIDDEN, message);
    let host = one(headers, &header::HOST).map_err(forbidden)?;
    if !host.is_some_and(|host| hosts.iter().any(|own| own == host)) {
        let message = format!("the host {} is not this studio: open http://{}/", shown(host), hosts[0]);
        return Err(forbidden(message));
    }
    let origin = one(headers, &header::ORIGIN).map_err(forbidden)?;
    let own = |origin: &str| origin.strip_prefix("http://").is_some_and(|host| hosts.iter().any(|own| own == host));
    if !origin.is_none_or(own) {
        return Err(forbidden(format!("the origin {} is another page: only the studio's own may ask", shown(origin))));
    }
    // Any page may link to the studio; everything else must come from the page itself or from a program.
    let site = one(headers, &HeaderName::from_static("sec-fetch-site")).map_err(forbidden)?;
    let page = request.method() == Method::GET && request.uri().path() == "/";
    if !page && !matches!(site, None | Some("same-origin" | "none")) {
        return Err(forbidden("the request comes from another page: only the studio's own may ask".into()));
    }
    let length = one(headers, &header::CONTENT_LENGTH).map_err(forbidden)?.and_then(|length| length.parse().ok());
    match length {
        Some(length) if length > limits::UPLOAD as u64 => Err(Failure::too_large(length)),
        _ => Ok(()),
    }
}

/// The only value of a header.
fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, String> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| format!("the header {name} is not text")),
        (Some(_), Some(_)) => Err(format!("the header {name} is there more than once")),
    }
}

fn shown(value: Option<&str>) -> String {
    value.map_or_else(|| "(none)".to_owned(), |value| format!("{value:?}"))
}
