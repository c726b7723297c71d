//! Server-sent events to listening pages.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures_util::Stream;
use futures_util::stream::unfold;
use serde::Serialize;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;

use super::failure::Failure;
use super::limits;
use super::queue::Message;
use super::server::Studio;

/// One listening page.
struct Listener {
    studio: Arc<Studio>,
    messages: Receiver<Message>,
    /// Events to send before waiting for messages.
    pending: VecDeque<Message>,
    _permit: OwnedSemaphorePermit,
}

/// All jobs and images at once, then every change.
pub async fn stream(
    State(studio): State<Arc<Studio>>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Failure> {
    let Ok(permit) = Arc::clone(&studio.streams).try_acquire_owned() else {
        let message = format!("{} pages are listening already: close one", limits::STREAMS);
        return Err(Failure::new(StatusCode::SERVICE_UNAVAILABLE, message));
    };
    let messages = studio.queue.listen();
    let listener = Listener { studio, messages, pending: everything(), _permit: permit };
    Ok(Sse::new(unfold(listener, next)).keep_alive(KeepAlive::default()))
}

fn everything() -> VecDeque<Message> {
    VecDeque::from([Message::Jobs, Message::Gallery])
}

async fn next(mut listener: Listener) -> Option<(Result<Event, Infallible>, Listener)> {
    if listener.studio.queue.closed() {
        return None;
    }
    let message = match listener.pending.pop_front() {
        Some(message) => message,
        None => match listener.messages.recv().await {
            Ok(message) => message,
            Err(RecvError::Closed) => return None,
            // The listener lagged: steps are lost, and the state is sent again.
            Err(RecvError::Lagged(_)) => {
                listener.pending = everything();
                listener.pending.pop_front()?
            }
        },
    };
    let event = match message {
        Message::Jobs => json("jobs", &listener.studio.queue.list()),
        Message::Gallery => json("gallery", &listener.studio.gallery.list()),
        Message::Step(step) => Event::default().event("step").data(&*step),
        Message::End => return None,
    };
    Some((Ok(event), listener))
}

fn json(name: &str, value: &impl Serialize) -> Event {
    // Jobs and images are plain structures that always serialize.
    Event::default().event(name).json_data(value).unwrap_or_else(|e| Event::default().comment(e.to_string()))
}
