//! Pipelines from the Hugging Face hub (feature `hub`), through the cache that the Python libraries share.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use burn::prelude::Device;
use dalle2_core::store::{read_json, weights_names};
use dalle2_core::{Error, LoadOptions, Result};
use hf_hub::api::Progress;
use hf_hub::api::sync::{Api, ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, Repo, RepoType};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::Pipeline;
use crate::pretrained::INDEX_FILE;

/// File names of the weights of a part.
const WEIGHTS: [&str; 2] = ["diffusion_pytorch_model", "model"];
/// Attempts to download a file.
const ATTEMPTS: usize = 3;

/// A source of pipelines, with a local cache.
///
/// Files are stored in the cache of Hugging Face's libraries (`$HF_HOME/hub`, else `~/.cache/huggingface/hub`), so what
/// those have fetched is not fetched again, and the reverse.
///
/// ```no_run
/// use dalle2::{Device, Hub, LoadOptions, Pipeline};
///
/// # fn main() -> dalle2::Result<()> {
/// let hub = Hub::new().revision("main");
/// let options = LoadOptions::new(&Device::default());
/// let pipeline = Pipeline::from_hub_with("owner/name", &hub, &options, |download| {
///     eprintln!("{}: {} of {} bytes", download.file, download.done, download.total);
/// })?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone)]
pub struct Hub {
    endpoint: Option<String>,
    cache_dir: Option<PathBuf>,
    revision: String,
    token: Option<String>,
    offline: bool,
}

/// Progress of the download of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Download<'a> {
    /// Path within the repository.
    pub file: &'a str,
    /// Downloaded bytes.
    pub done: u64,
    /// Total bytes.
    pub total: u64,
}

type Report<'a> = &'a mut dyn FnMut(Download<'_>);

impl Default for Hub {
    fn default() -> Self {
        Self::new()
    }
}

impl Hub {
    /// The public hub, branch `main`; the environment variables `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and
    /// `HF_HUB_OFFLINE` count as they do for Hugging Face's own libraries.
    pub fn new() -> Self {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            endpoint: variable("HF_ENDPOINT"),
            cache_dir: None,
            revision: "main".into(),
            token: variable("HF_TOKEN"),
            offline: variable("HF_HUB_OFFLINE").is_some_and(|value| value != "0"),
        }
    }

    /// Another server, such as `https://hub.example.org`.
    pub fn endpoint(mut self, url: impl Into<String>) -> Self {
        self.endpoint = Some(url.into());
        self
    }

    /// Another directory for what was fetched.
    pub fn cache_dir(mut self, dir: impl Into<PathBuf>) -> Self {
        self.cache_dir = Some(dir.into());
        self
    }

    /// A branch, a tag or a commit.
    pub fn revision(mut self, revision: impl Into<String>) -> Self {
        self.revision = revision.into();
        self
    }

    /// The access token for private repositories.
    pub fn token(mut self, token: impl Into<String>) -> Self {
        self.token = Some(token.into());
        self
    }

    /// Takes what is in the cache and asks no server.
    pub fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// Fetches what a pipeline needs (JSON files, tokenizer, one form of each part's weights, safetensors where there is
    /// one) and returns the directory of it. What is in the cache is not fetched again; a download that broke off goes
    /// on where it stopped. `report` receives the progress of each file.
    ///
    /// Without a connection, what the cache holds of the revision is taken.
    ///
    /// # Errors
    /// [`Error::Hub`] when `repo` is not `owner/name`, there is no such repository or revision or the token does not
    /// open it, it holds no pipeline or lacks files, or the server cannot be reached and the cache has nothing.
    pub fn download(&self, repo: &str, mut report: impl FnMut(Download<'_>)) -> Result<PathBuf> {
        check_names(repo, &self.revision)?;
        let cache = self.cache()?;
        if self.offline {
            let message = format!("revision {} is not in the cache {}", self.revision, cache.path().display());
            return self.cached(&cache, repo).ok_or_else(|| error(repo, format!("{message}, and we are offline")));
        }
        let builder = ApiBuilder::from_cache(cache.clone()).with_progress(false);
        let builder = match &self.endpoint {
            Some(endpoint) => builder.with_endpoint(endpoint.trim_end_matches('/').to_owned()),
            None => builder,
        };
        let builder = if self.token.is_some() { builder.with_token(self.token.clone()) } else { builder };
        let api = builder.build().map_err(|e| error(repo, e.to_string()))?;
        let info = match api.repo(self.repo(repo, &self.revision)).info() {
            Ok(info) => info,
            Err(cause) => {
                let cached = self.cached(&cache, repo).filter(|_| status(&cause).is_none());
                let dir = cached.ok_or_else(|| error(repo, explain(&cause, &format!("revision {}", self.revision))))?;
                tracing::warn!("{repo}: the hub cannot be reached ({cause}); using {}", dir.display());
                return Ok(dir);
            }
        };
        check_names(repo, &info.sha)?;
        let files = info.siblings.into_iter().map(|sibling| sibling.rfilename).collect();
        let mut fetch = Fetch {
            repo,
            remote: api.repo(self.repo(repo, &info.sha)),
            api,
            dir: cache.repo(self.repo(repo, &info.sha)).pointer_path(&info.sha),
            files,
            report: &mut report,
        };
        fetch.pipeline()?;
        // Last, so that the name of a revision never stands for half of it.
        let named = cache.repo(self.repo(repo, &self.revision)).create_ref(&info.sha);
        named.map_err(|e| Error::io(cache.path(), e))?;
        Ok(fetch.dir)
    }

    fn cache(&self) -> Result<Cache> {
        match &self.cache_dir {
            Some(dir) => Ok(Cache::new(std::path::absolute(dir).map_err(|e| Error::io(dir, e))?)),
            None => Ok(Cache::from_env()),
        }
    }

    fn repo(&self, repo: &str, revision: &str) -> Repo {
        Repo::with_revision(repo.to_owned(), RepoType::Model, revision.to_owned())
    }

    /// The directory of the revision in the cache.
    fn cached(&self, cache: &Cache, repo: &str) -> Option<PathBuf> {
        let named = cache.path().join(self.repo(repo, "main").folder_name()).join("refs").join(&self.revision);
        let commit = std::fs::read_to_string(named).unwrap_or_else(|_| self.revision.clone());
        let dir = cache.repo(self.repo(repo, &self.revision)).pointer_path(commit.trim());
        dir.is_dir().then_some(dir)
    }
}

impl Pipeline {
    /// Fetches a pipeline from the Hugging Face hub and loads it; see [`Hub`] for the cache and the environment.
    ///
    /// Pickled weights are taken only where a part has no safetensors, and nothing in them is executed.
    ///
    /// # Errors
    /// As [`Hub::download`] and [`Pipeline::from_pretrained`].
    pub fn from_hub(repo: &str, device: &Device) -> Result<Self> {
        Self::from_hub_with(repo, &Hub::new(), &LoadOptions::new(device), |_| {})
    }

    /// Like [`Pipeline::from_hub`], from another hub, with options for loading and a report of the progress.
    ///
    /// # Errors
    /// As [`Hub::download`] and [`Pipeline::from_pretrained_with`].
    pub fn from_hub_with(
        repo: &str,
        hub: &Hub,
        options: &LoadOptions,
        report: impl FnMut(Download<'_>),
    ) -> Result<Self> {
        Self::from_pretrained_with(hub.download(repo, report)?, options)
    }
}

/// One repository at one commit.
struct Fetch<'a> {
    repo: &'a str,
    api: Api,
    remote: ApiRepo,
    dir: PathBuf,
    /// The files of the repository.
    files: BTreeSet<String>,
    report: Report<'a>,
}

#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

impl Fetch<'_> {
    fn pipeline(&mut self) -> Result<()> {
        if !self.files.contains(INDEX_FILE) {
            return Err(error(self.repo, format!("is not a pipeline: it has no {INDEX_FILE}")));
        }
        self.file(INDEX_FILE)?;
        let index: Map<String, Value> = read_json(self.dir.join(INDEX_FILE))?;
        for (part, entry) in index {
            let is_part = entry.as_array().is_some_and(|entry| entry.iter().all(Value::is_string));
            if is_part && !part.starts_with('_') {
                self.part(&part)?;
            }
        }
        Ok(())
    }

    /// The JSON and text files of a part, and its weights if it has any.
    fn part(&mut self, part: &str) -> Result<()> {
        let within = format!("{part}/");
        let names: BTreeSet<String> =
            self.files.iter().filter_map(|file| file.strip_prefix(&within)).map(str::to_owned).collect();
        for name in &names {
            let is_metadata = [".json", ".txt"].iter().any(|ending| name.ends_with(ending));
            if is_metadata && !name.contains('/') && !name.contains(".index.") {
                self.file(&format!("{within}{name}"))?;
            }
        }
        let Some(weights) = weights_names(&WEIGHTS).into_iter().find(|name| names.contains(name)) else {
            return Ok(()); // a scheduler or a tokenizer; of other parts the loader says what they lack
        };
        let path = format!("{within}{weights}");
        self.file(&path)?;
        if weights.ends_with(".json") {
            let index: ShardIndex = read_json(self.dir.join(&path))?;
            let shards: BTreeSet<String> = index.weight_map.into_values().collect();
            let missing: Vec<&str> =
                shards.iter().filter(|shard| !names.contains(*shard)).map(String::as_str).collect();
            if !missing.is_empty() {
                return Err(error(self.repo, format!("{path} names files that are not there: {}", missing.join(", "))));
            }
            for shard in shards {
                self.file(&format!("{within}{shard}"))?;
            }
        }
        Ok(())
    }

    /// Fetches one file of the list unless it is here.
    fn file(&mut self, file: &str) -> Result<()> {
        let path = self.dir.join(file);
        if path.is_file() {
            return Ok(());
        }
        // The list comes from the server: no name may lead out of the directory.
        if file.split('/').any(|name| name.is_empty() || name == "." || name == "..") || file.contains('\\') {
            return Err(error(self.repo, format!("the file name {file:?} is not a path within a repository")));
        }
        for attempt in 1.. {
            let mut progress = Reporter { file, done: 0, total: 0, report: &mut *self.report };
            let result = self.remote.download_with_progress(file, &mut progress);
            let total = progress.total;
            match result {
                Ok(_) if file_size(&path) == Some(total) => return Ok(()),
                Ok(_) => {
                    let size = file_size(&path).unwrap_or_default();
                    remove_damaged(&path);
                    if attempt >= ATTEMPTS {
                        let message = format!("{file} has {size} bytes after its download, expected {total}");
                        return Err(error(self.repo, message));
                    }
                }
                // A part that is complete, or longer than the file, cannot be continued.
                Err(cause) if attempt < ATTEMPTS && (status(&cause) == Some(416) || is_unusable(&cause)) => {
                    self.remove_part(file);
                }
                Err(cause) if attempt < ATTEMPTS && status(&cause).is_none() => {
                    tracing::warn!("{}: the download of {file} broke off ({cause}); retrying", self.repo);
                }
                Err(cause) => return Err(error(self.repo, explain(&cause, file))),
            }
        }
        Ok(())
    }

    /// Removes what an earlier download has left of a file.
    fn remove_part(&self, file: &str) {
        if let Ok(metadata) = self.api.metadata(&self.remote.url(file))
            && let Some(blobs) = self.dir.ancestors().nth(2).map(|root| root.join("blobs"))
        {
            let _ = std::fs::remove_file(blobs.join(metadata.etag()).with_extension("part"));
        }
    }
}

/// Forwards the progress of one file.
struct Reporter<'a> {
    file: &'a str,
    done: u64,
    total: u64,
    report: Report<'a>,
}

impl Progress for &mut Reporter<'_> {
    fn init(&mut self, size: usize, _: &str) {
        (self.done, self.total) = (0, size as u64);
    }

    fn update(&mut self, size: usize) {
        self.done += size as u64;
        (self.report)(Download { file: self.file, done: self.done, total: self.total });
    }

    fn finish(&mut self) {}
}

/// Repository and revision become parts of paths and addresses.
fn check_names(repo: &str, revision: &str) -> Result<()> {
    let plain = |name: &str| {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        !name.is_empty() && name.chars().all(fits) && !name.starts_with('.')
    };
    if repo.split('/').count() != 2 || !repo.split('/').all(plain) {
        return Err(error(repo, "is not the name of a model on the hub: expected \"owner/name\"".into()));
    }
    if !revision.split('/').all(plain) {
        return Err(error(repo, format!("{revision:?} is not a branch, a tag or a commit")));
    }
    Ok(())
}

fn error(repo: &str, message: String) -> Error {
    Error::Hub { repo: repo.to_owned(), message }
}

/// The server's answer, if it gave one.
fn status(cause: &ApiError) -> Option<u16> {
    match cause {
        ApiError::RequestError(cause) => match **cause {
            ureq::Error::StatusCode(status) => Some(status),
            _ => None,
        },
        _ => None,
    }
}

fn is_unusable(cause: &ApiError) -> bool {
    matches!(cause, ApiError::InvalidResume)
}

fn explain(cause: &ApiError, what: &str) -> String {
    match status(cause) {
        Some(404) => format!("{what} does not exist on the hub (404)"),
        Some(status @ (401 | 403)) => {
            format!("{what} does not exist on the hub, or needs a token that opens it ({status}): set HF_TOKEN")
        }
        Some(status) => format!("{what}: the hub answered {status}"),
        None => format!("{what}: the hub cannot be reached, and it is not in the cache ({cause})"),
    }
}

fn file_size(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|metadata| metadata.len())
}

/// Removes a file of the wrong length, and the blob that its link points to.
fn remove_damaged(path: &Path) {
    if let Ok(blob) = std::fs::canonicalize(path) {
        let _ = std::fs::remove_file(blob);
    }
    let _ = std::fs::remove_file(path);
}
