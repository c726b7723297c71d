//! The addresses that the page uses; `docs/studio.md` lists them.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, JsonRejection};
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router, middleware};
use dalle2::Pipeline;
use serde::Deserialize;
use tokio::sync::Semaphore;

use super::failure::Failure;
use super::gallery::{Gallery, GalleryImage, ImageId};
use super::guard::guard;
use super::model::Model;
use super::queue::{Job, Message, Queue, Refused};
use super::task::Task;
use super::{events, limits, page, worker};

/// Time that open connections have to end.
const FAREWELL: Duration = Duration::from_secs(3);

type Answer<T> = Result<T, Failure>;

/// State shared by all requests.
#[derive(Debug)]
pub struct Studio {
    pub model: Model,
    pub queue: Queue,
    pub gallery: Gallery,
    /// Names of this server, as browsers write them into `Host`.
    pub hosts: Vec<String>,
    /// Bounds how many pages listen.
    pub streams: Arc<Semaphore>,
    /// Bounds how many bodies are read.
    pub bodies: Semaphore,
}

/// Listens on this machine's own address, where no other machine can reach it.
///
/// # Errors
/// When the port is in use or may not be used.
pub fn bind(port: u16) -> Result<TcpListener> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|e| {
        let message = match e.kind() {
            std::io::ErrorKind::AddrInUse => {
                format!("port {port} is in use, perhaps by another studio: --port takes another one, or 0 for any")
            }
            _ => format!("cannot listen on 127.0.0.1:{port}"),
        };
        anyhow::Error::new(e).context(message)
    })?;
    listener.set_nonblocking(true).context("cannot listen")?;
    Ok(listener)
}

/// Serves until `end` is there, then cancels what is left and waits for it.
///
/// # Errors
/// When the server or its thread cannot start.
pub fn serve(
    pipeline: Pipeline,
    model: String,
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let port = listener.local_addr().context("cannot listen")?.port();
    let studio = Arc::new(Studio {
        model: Model::of(&pipeline, model.clone()),
        queue: Queue::new(),
        gallery: Gallery::new(model)?,
        hosts: ["127.0.0.1", "localhost"].map(|name| format!("{name}:{port}")).to_vec(),
        streams: Arc::new(Semaphore::new(limits::STREAMS)),
        bodies: Semaphore::new(limits::BODIES),
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
    let shared = Arc::clone(&studio);
    let worker = std::thread::Builder::new()
        .name("studio".into())
        .spawn(move || worker::run(&pipeline, &shared.queue, &shared.gallery))
        .context("cannot start")?;
    let served = runtime.block_on(listen(Arc::clone(&studio), listener, end));
    studio.queue.close();
    // It stops at the next step; a panic has been reported.
    let _ = worker.join();
    served
}

async fn listen(
    studio: Arc<Studio>,
    listener: TcpListener,
    end: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener).context("cannot listen")?;
    let (ended, ending) = tokio::sync::oneshot::channel::<()>();
    let closing = Arc::clone(&studio);
    let shutdown = async move {
        end.await;
        closing.queue.close();
        let _ = ended.send(());
    };
    let server = axum::serve(listener, router(studio)).with_graceful_shutdown(shutdown);
    let farewell = async {
        // Without an end the server does not end either.
        let _ = ending.await;
        tokio::time::sleep(FAREWELL).await;
    };
    tokio::select! {
        served = server.into_future() => served.context("the server stopped"),
        () = farewell => Ok(()),
    }
}

fn router(studio: Arc<Studio>) -> Router {
    let images = get(images).post(upload).layer(DefaultBodyLimit::max(limits::UPLOAD));
    let jobs = get(jobs).post(submit).layer(DefaultBodyLimit::max(limits::JSON));
    Router::new()
        .route("/", get(page::html))
        .route("/assets/{name}", get(page::asset))
        .route("/api/model", get(model))
        .route("/api/images", images)
        .route("/api/images/{id}", get(image))
        .route("/api/jobs", jobs)
        .route("/api/jobs/{id}", get(job).delete(cancel))
        .route("/api/events", get(events::stream))
        .fallback(|| async { Failure::new(StatusCode::NOT_FOUND, "there is nothing here") })
        .method_not_allowed_fallback(|| async {
            Failure::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take that method")
        })
        .layer(middleware::from_fn_with_state(Arc::clone(&studio), guard))
        .with_state(studio)
}

async fn model(State(studio): State<Arc<Studio>>) -> Json<Model> {
    Json(studio.model.clone())
}

async fn images(State(studio): State<Arc<Studio>>) -> Json<Vec<GalleryImage>> {
    Json(studio.gallery.list())
}

async fn image(State(studio): State<Arc<Studio>>, Path(name): Path<String>) -> Answer<Response> {
    let absent = || Failure::new(StatusCode::NOT_FOUND, format!("no image is named {name:?}"));
    let id = ImageId::try_from(name.trim_end_matches(".png").to_owned()).map_err(|_| absent())?;
    let png = blocking(move || studio.gallery.png(id)).await?.ok_or_else(absent)?;
    Ok(([(header::CONTENT_TYPE, "image/png")], png).into_response())
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Named {
    name: String,
}

async fn upload(
    State(studio): State<Arc<Studio>>,
    Query(Named { name }): Query<Named>,
    body: Result<Bytes, BytesRejection>,
) -> Answer<impl IntoResponse> {
    let body = body?;
    let upload_to = Arc::clone(&studio);
    let stored = blocking(move || upload_to.gallery.upload(&body, &name)).await?;
    let image = stored.map_err(|e| Failure::unprocessable(format!("{e:#}")))?;
    studio.queue.tell(Message::Gallery);
    Ok((StatusCode::CREATED, Json(image)))
}

async fn jobs(State(studio): State<Arc<Studio>>) -> Json<Vec<Job>> {
    Json(studio.queue.list())
}

async fn submit(
    State(studio): State<Arc<Studio>>,
    task: Result<Json<Task>, JsonRejection>,
) -> Answer<impl IntoResponse> {
    let Json(task) = task?;
    let job = blocking(move || accept(&studio, task)).await??;
    Ok((StatusCode::ACCEPTED, Json(job)))
}

/// Checks a task as far as it can be before it is its turn, and queues it.
fn accept(studio: &Studio, task: Task) -> Answer<Job> {
    task.check(&studio.model).map_err(Failure::unprocessable)?;
    for id in task.images() {
        if studio.gallery.get(id).is_none() {
            return Err(Failure::unprocessable(format!("no image is named {id}")));
        }
    }
    if let Task::Inpaint(task) = &task
        && let Some(image) = studio.gallery.get(task.image)
    {
        let mask = task.mask.mask().map_err(|e| Failure::unprocessable(format!("mask: {e}")))?;
        mask.check_size([image.width, image.height]).map_err(Failure::unprocessable)?;
    }
    let title = worker::title(&task, &studio.gallery);
    studio.queue.submit(task, title).map_err(|refused| {
        let message = match refused {
            Refused::Full => {
                format!("{} jobs are waiting already: cancel one, or wait for one to end", limits::WAITING)
            }
            Refused::Closed => "the studio is ending".to_owned(),
        };
        Failure::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })
}

async fn job(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Answer<Json<Job>> {
    known(&id, |id| studio.queue.get(id))
}

async fn cancel(State(studio): State<Arc<Studio>>, Path(id): Path<String>) -> Answer<Json<Job>> {
    known(&id, |id| studio.queue.cancel(id))
}

fn known(id: &str, find: impl FnOnce(u64) -> Option<Job>) -> Answer<Json<Job>> {
    let job = id.parse().ok().and_then(find);
    job.map(Json).ok_or_else(|| Failure::new(StatusCode::NOT_FOUND, format!("there is no job {id:?}")))
}

/// Does what takes a while beside the connections.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Answer<T> {
    let failed = |_| Failure::new(StatusCode::INTERNAL_SERVER_ERROR, "the request panicked: the terminal says where");
    tokio::task::spawn_blocking(work).await.map_err(failed)
}
