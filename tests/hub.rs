//! Fetching a pipeline from a hub: a small server on this machine stands in for it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use dalle2::{Device, Error, GenerateRequest, Hub, LoadOptions, Pipeline};

const REPO: &str = "someone/tiny-unclip";
const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A server of one repository that remembers what was asked for.
#[derive(Clone)]
struct Server {
    address: String,
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Path and first byte of every request for a file's content.
    requests: Arc<Mutex<Vec<(String, usize)>>>,
    /// The next answer of this file breaks off in the middle.
    interrupt: Arc<Mutex<Option<String>>>,
}

impl Server {
    /// Serves the files of the reference's tiny checkpoint.
    fn start() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny-unclip/pipeline");
        let mut files = BTreeMap::new();
        collect(&root, &root, &mut files);
        assert!(files.len() > 15);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = Self {
            address: format!("http://{}", listener.local_addr().unwrap()),
            files: Arc::new(Mutex::new(files)),
            requests: Arc::default(),
            interrupt: Arc::default(),
        };
        let shared = server.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let server = shared.clone();
                std::thread::spawn(move || server.answer(stream));
            }
        });
        server
    }

    fn hub(&self, cache: &Path) -> Hub {
        Hub::new().endpoint(&self.address).cache_dir(cache).token("secret")
    }

    fn put(&self, file: &str, content: impl Into<Vec<u8>>) {
        self.files.lock().unwrap().insert(file.into(), content.into());
    }

    fn requested(&self) -> Vec<(String, usize)> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    fn answer(&self, mut stream: TcpStream) {
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            match line.trim() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)).map(str::to_owned) else { return };
        let files = self.files.lock().unwrap().clone();
        if path == format!("/api/models/{REPO}/revision/main") {
            let siblings: Vec<_> = files.keys().map(|name| serde_json::json!({"rfilename": name})).collect();
            let body = serde_json::json!({"sha": COMMIT, "siblings": siblings}).to_string();
            return send(
                &mut stream,
                "200 OK",
                &[("content-type", "application/json".into())],
                body.as_bytes(),
                body.len(),
            );
        }
        let content = path
            .strip_prefix(&format!("/{REPO}/resolve/{COMMIT}/"))
            .and_then(|name| files.get(name).map(|content| (name.to_owned(), content.clone())));
        let Some((name, content)) = content else {
            return send(&mut stream, "404 Not Found", &[], b"", 0);
        };
        let range = lines.iter().find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned));
        let (from, to) = range.as_deref().and_then(|range| range.split_once('-')).unwrap_or(("0", ""));
        let from: usize = from.parse().unwrap();
        let to: usize = to.parse().map_or(content.len(), |to: usize| to + 1);
        if from >= content.len() {
            return send(&mut stream, "416 Range Not Satisfiable", &[], b"", 0);
        }
        let headers = [
            ("x-repo-commit", COMMIT.to_owned()),
            ("etag", format!("\"{}-{}\"", name.replace('/', "-"), content.len())),
            ("content-range", format!("bytes {from}-{}/{}", to - 1, content.len())),
        ];
        let mut body = &content[from..to];
        let length = body.len();
        if (from, to) != (0, 1) {
            self.requests.lock().unwrap().push((name.clone(), from));
            let mut interrupt = self.interrupt.lock().unwrap();
            if interrupt.as_ref() == Some(&name) {
                *interrupt = None;
                body = &body[..length / 2];
            }
        }
        send(&mut stream, "206 Partial Content", &headers, body, length);
    }
}

fn send(stream: &mut TcpStream, status: &str, headers: &[(&str, String)], body: &[u8], length: usize) {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n{headers}\r\n");
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn collect(root: &Path, dir: &Path, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in std::fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            collect(root, &path, files);
        } else {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
            files.insert(name, std::fs::read(&path).unwrap());
        }
    }
}

fn nowhere() -> String {
    // A port that was free a moment ago.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[test]
fn a_pipeline_is_fetched_once_and_then_found_without_a_network() {
    let server = Server::start();
    server.put("README.md", "not needed");
    server.put("decoder/diffusion_pytorch_model.bin", "not needed beside safetensors");
    server.put("safety_checker/model.safetensors", "not a part");
    let cache = tempfile::tempdir().unwrap();
    let mut done = BTreeMap::new();
    let options = LoadOptions::new(&Device::flex());
    let pipeline = Pipeline::from_hub_with(REPO, &server.hub(cache.path()), &options, |download| {
        assert!(download.done <= download.total);
        done.insert(download.file.to_owned(), (download.done, download.total));
    })
    .unwrap();
    let request = GenerateRequest::new("a").prior_steps(1).decoder_steps(1).upsampler_steps(1);
    assert_eq!(pipeline.generate(request).unwrap().images[0].width(), 32);

    let fetched: Vec<String> = server.requested().into_iter().map(|(name, _)| name).collect();
    assert!(fetched.contains(&"decoder/diffusion_pytorch_model.safetensors".to_owned()));
    assert!(fetched.contains(&"tokenizer/merges.txt".to_owned()));
    for unwanted in ["README.md", "decoder/diffusion_pytorch_model.bin", "safety_checker/model.safetensors"] {
        assert!(!fetched.contains(&unwanted.to_owned()), "{unwanted}");
    }
    assert!(done.len() == fetched.len() && done.values().all(|(done, total)| done == total), "{done:?}");

    let dir = server.hub(cache.path()).download(REPO, |_| {}).unwrap();
    assert_eq!(server.requested(), [], "what is in the cache is not fetched again");
    let offline = server.hub(cache.path()).offline().download(REPO, |_| {}).unwrap();
    let unreachable = Hub::new().endpoint(nowhere()).cache_dir(cache.path()).download(REPO, |_| {}).unwrap();
    assert_eq!((&offline, &unreachable), (&dir, &dir));
    Pipeline::from_pretrained(offline, &Device::flex()).unwrap();
}

#[test]
fn a_download_that_breaks_off_goes_on_where_it_stopped() {
    let server = Server::start();
    let cache = tempfile::tempdir().unwrap();
    let file = "prior/diffusion_pytorch_model.safetensors";
    *server.interrupt.lock().unwrap() = Some(file.into());
    let dir = server.hub(cache.path()).download(REPO, |_| {}).unwrap();
    let content = server.files.lock().unwrap()[file].clone();
    let requests: Vec<usize> =
        server.requested().into_iter().filter(|(name, _)| name == file).map(|(_, from)| from).collect();
    assert_eq!(requests, [0, content.len() / 2]);
    assert_eq!(std::fs::read(dir.join(file)).unwrap(), content);
}

#[test]
fn shards_are_fetched_by_their_index() {
    let server = Server::start();
    let whole = server.files.lock().unwrap().remove("text_proj/diffusion_pytorch_model.safetensors").unwrap();
    let names: Vec<String> =
        safetensors::SafeTensors::deserialize(&whole).unwrap().names().iter().map(|n| n.to_string()).collect();
    let place = |shard: &str| -> Vec<u8> {
        let map: BTreeMap<&String, &str> = names.iter().map(|name| (name, shard)).collect();
        serde_json::to_vec(&serde_json::json!({"weight_map": map})).unwrap()
    };
    server.put("text_proj/one.safetensors", whole);
    server.put("text_proj/diffusion_pytorch_model.safetensors.index.json", place("one.safetensors"));
    let cache = tempfile::tempdir().unwrap();
    let options = LoadOptions::new(&Device::flex());
    Pipeline::from_hub_with(REPO, &server.hub(cache.path()), &options, |_| {}).unwrap();

    server.put("text_proj/diffusion_pytorch_model.safetensors.index.json", place("../../../one.safetensors"));
    let other = tempfile::tempdir().unwrap();
    let error = server.hub(other.path()).download(REPO, |_| {}).unwrap_err().to_string();
    assert!(error.contains("../../../one.safetensors"), "{error}");
}

#[test]
fn what_cannot_be_fetched_is_explained() {
    let server = Server::start();
    let cache = tempfile::tempdir().unwrap();
    let message = |hub: &Hub, repo: &str| match hub.download(repo, |_| {}).unwrap_err() {
        Error::Hub { repo: named, message } if named == repo => message,
        other => panic!("{other}"),
    };
    let hub = server.hub(cache.path());
    assert!(message(&hub, "someone/else").contains("does not exist on the hub (404)"));
    assert!(message(&hub.clone().revision("v2"), REPO).contains("revision v2 does not exist"));
    assert!(message(&hub.clone().endpoint(nowhere()), REPO).contains("cannot be reached"));
    assert!(message(&hub.clone().offline(), REPO).contains("offline"));
    for name in ["no-owner", "a/b/c", "../..", "a/..", "a/b c"] {
        assert!(message(&hub, name).contains("owner/name"), "{name}");
    }
    assert!(message(&hub.clone().revision("../main"), REPO).contains("not a branch"));
    server.files.lock().unwrap().remove("model_index.json");
    assert!(message(&hub, REPO).contains("model_index.json"));
    assert_eq!(files_in(cache.path()), Vec::<PathBuf>::new());
}

fn files_in(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).unwrap().flatten().map(|entry| entry.path()).collect()
}
