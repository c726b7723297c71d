//! A studio for tests, and requests to it, down to the bytes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dalle2::{Device, Pipeline};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::server;

/// Longest time that a test waits for a job.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// The bundled model, read once.
pub fn pipeline() -> Pipeline {
    static PIPELINE: OnceLock<Pipeline> = OnceLock::new();
    let load = || Pipeline::from_pretrained(repository().join("models/emoji"), &Device::flex()).unwrap();
    PIPELINE.get_or_init(load).clone()
}

/// A running studio, which ends with the value.
pub struct Server {
    pub port: u16,
    end: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// All headers, in small letters.
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }

    /// The error message of the answer.
    pub fn error(&self) -> String {
        self.json()["error"].as_str().unwrap_or_else(|| panic!("no error: {self:?}")).to_owned()
    }
}

impl Server {
    pub fn start() -> Self {
        let listener = server::bind(0).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (end, ended) = oneshot::channel();
        let serve = move || {
            let end = async move {
                let _ = ended.await;
            };
            server::serve(pipeline(), "models/emoji".into(), listener, end)
        };
        Self { port, end: Some(end), thread: Some(std::thread::spawn(serve)) }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/", self.port)
    }

    /// Ends it, and gives back the time that it took.
    pub fn end(&mut self) -> Duration {
        let start = Instant::now();
        let _ = self.end.take().unwrap().send(());
        self.thread.take().unwrap().join().unwrap().unwrap();
        start.elapsed()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    }

    /// Sends a request line with headers, and a body.
    pub fn raw(&self, head: &str, body: &[u8]) -> Answer {
        let mut stream = self.connect();
        stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n").as_bytes()).unwrap();
        // The answer may come before the body has been read.
        let _ = stream.write_all(body);
        read_answer(stream)
    }

    /// Sends a request as a program on this machine does.
    pub fn send(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
        let length = body.len();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{}\r\nContent-Type: {kind}\r\nContent-Length: {length}",
            self.port
        );
        self.raw(&head, body)
    }

    pub fn get(&self, path: &str) -> Answer {
        self.send("GET", path, "text/plain", b"")
    }

    pub fn upload(&self, bytes: &[u8]) -> Answer {
        self.send("POST", "/api/images?name=own%20image", "application/octet-stream", bytes)
    }

    pub fn submit(&self, task: &Value) -> Answer {
        self.send("POST", "/api/jobs", "application/json", task.to_string().as_bytes())
    }

    pub fn cancel(&self, job: u64) -> Answer {
        self.send("DELETE", &format!("/api/jobs/{job}"), "text/plain", b"")
    }

    pub fn job(&self, id: u64) -> Value {
        self.get(&format!("/api/jobs/{id}")).json()
    }

    /// Waits until a job has a state.
    pub fn wait_for(&self, id: u64, reached: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let job = self.job(id);
            if reached(&job) {
                return job;
            }
            assert!(start.elapsed() < PATIENCE, "timeout while waiting for {job}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a job to its end.
    pub fn run(&self, task: &Value) -> Value {
        let answer = self.submit(task);
        assert_eq!(answer.status, 202, "{answer:?}");
        let id = answer.json()["id"].as_u64().unwrap();
        self.wait_for(id, |job| !matches!(job["state"].as_str(), Some("waiting" | "running")))
    }

    /// Runs a job that succeeds, and returns the names of its images.
    pub fn images_of(&self, task: &Value) -> Vec<String> {
        let job = self.run(task);
        assert_eq!(job["state"], "done", "{job}");
        job["images"].as_array().unwrap().iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    pub fn png(&self, image: &str) -> Vec<u8> {
        let answer = self.get(&format!("/api/images/{image}.png"));
        assert_eq!(answer.status, 200, "{}", answer.head);
        answer.body
    }

    /// Listens, and calls `on` with the name and data of each event until it is true.
    pub fn listen(&self, mut on: impl FnMut(&str, &Value) -> bool) {
        let mut stream = self.connect();
        let head = format!("GET /api/events HTTP/1.1\r\nHost: 127.0.0.1:{}\r\n\r\n", self.port);
        stream.write_all(head.as_bytes()).unwrap();
        let mut name = String::new();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            if let Some(event) = line.strip_prefix("event: ") {
                event.clone_into(&mut name);
            } else if let Some(data) = line.strip_prefix("data: ")
                && on(&name, &serde_json::from_str(data).unwrap())
            {
                return;
            }
        }
        panic!("the stream ended");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.end.is_some() {
            self.end();
        }
    }
}

/// Reads an answer of a known length to its end.
pub fn read_answer(stream: TcpStream) -> Answer {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    loop {
        let mut line = String::new();
        let read = reader.read_line(&mut line).unwrap();
        if read == 0 || line == "\r\n" {
            break;
        }
        head.push_str(&line.to_lowercase());
    }
    let status = head.split(' ').nth(1).unwrap_or_else(|| panic!("no answer: {head:?}")).parse().unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    Answer { status, head, body }
}

/// Few steps, the decoder's size.
pub fn quick(seed: u64) -> Value {
    json!({ "seed": seed, "steps": 4, "prior_steps": 4, "size": 32 })
}
