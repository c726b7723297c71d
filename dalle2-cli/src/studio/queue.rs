//! Waiting, running and ended jobs.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::broadcast;

use super::gallery::ImageId;
use super::limits;
use super::task::Task;

/// Messages that a page may be behind; it gets everything anew when it is further.
const MESSAGES: usize = 256;

/// The value of a mutex. A thread that panicked has left it as it was: every change here is one assignment or push.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Waiting,
    Running,
    Done,
    Failed,
    Cancelled,
}

impl State {
    fn ended(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }
}

/// A job as pages see it.
#[derive(Debug, Clone, Serialize)]
pub struct Job {
    pub id: u64,
    /// Name of the task in the API.
    pub task: &'static str,
    pub title: String,
    pub state: State,
    /// Jobs before this one, while it waits.
    pub position: Option<usize>,
    /// Progress while it runs.
    pub progress: Option<Progress>,
    /// Its results in order.
    pub images: Vec<ImageId>,
    /// The reason of a failure.
    pub error: Option<String>,
    pub seed: Option<u64>,
    /// Run time.
    pub seconds: Option<f64>,
}

/// The last step of a running job.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Progress {
    pub stage: String,
    /// Steps that the stage has done, from 1 to `total`.
    pub step: usize,
    pub total: usize,
    /// Index of the first image of the current batch.
    pub first_image: usize,
}

/// The outcome of a job.
#[derive(Debug)]
pub struct Outcome {
    pub state: State,
    pub images: Vec<ImageId>,
    pub error: Option<String>,
    pub seed: Option<u64>,
    pub seconds: f64,
}

/// A message to listening pages.
#[derive(Debug, Clone)]
pub enum Message {
    /// Jobs have changed.
    Jobs,
    /// The gallery changed.
    Gallery,
    /// A step was made; the JSON of its event.
    Step(Arc<str>),
    /// The studio ends.
    End,
}

/// A job that is to be run.
#[derive(Debug)]
pub struct Work {
    pub id: u64,
    pub task: Task,
    cancelled: Arc<AtomicBool>,
}

impl Work {
    /// Whether somebody wants it to stop.
    pub fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

#[derive(Debug)]
pub struct Queue {
    jobs: Mutex<Jobs>,
    changed: Condvar,
    messages: broadcast::Sender<Message>,
}

#[derive(Debug, Default)]
struct Jobs {
    last: u64,
    /// In order of arrival.
    all: VecDeque<Job>,
    waiting: VecDeque<Work>,
    running: Option<(u64, Arc<AtomicBool>)>,
    closed: bool,
}

/// Why a job was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    Full,
    Closed,
}

impl Queue {
    pub fn new() -> Self {
        Self { jobs: Mutex::default(), changed: Condvar::new(), messages: broadcast::Sender::new(MESSAGES) }
    }

    /// Adds a job at the end.
    pub fn submit(&self, task: Task, title: String) -> Result<Job, Refused> {
        let mut jobs = lock(&self.jobs);
        if jobs.closed {
            return Err(Refused::Closed);
        }
        if jobs.waiting.len() >= limits::WAITING {
            return Err(Refused::Full);
        }
        jobs.last += 1;
        let (id, name) = (jobs.last, task.name());
        let job = Job {
            id,
            task: name,
            title,
            state: State::Waiting,
            position: None,
            progress: None,
            images: Vec::new(),
            error: None,
            seed: None,
            seconds: None,
        };
        jobs.all.push_back(job);
        jobs.waiting.push_back(Work { id, task, cancelled: Arc::default() });
        let ended = jobs.all.iter().filter(|job| job.state.ended()).count();
        if ended > limits::ENDED
            && let Some(oldest) = jobs.all.iter().position(|job| job.state.ended())
        {
            jobs.all.remove(oldest);
        }
        let job = jobs.find(id);
        drop(jobs);
        self.changed.notify_one();
        self.tell(Message::Jobs);
        job.ok_or(Refused::Closed)
    }

    /// The next job, as soon as there is one; `None` when the studio ends.
    pub fn take(&self) -> Option<Work> {
        let mut jobs = lock(&self.jobs);
        let work = loop {
            if jobs.closed {
                return None;
            }
            if let Some(work) = jobs.waiting.pop_front() {
                break work;
            }
            jobs = self.changed.wait(jobs).unwrap_or_else(PoisonError::into_inner);
        };
        jobs.running = Some((work.id, Arc::clone(&work.cancelled)));
        jobs.change(work.id, |job| job.state = State::Running);
        drop(jobs);
        self.tell(Message::Jobs);
        Some(work)
    }

    /// Notes a step of the running job. `event` is what listening pages get.
    pub fn step(&self, id: u64, progress: Progress, event: String) {
        lock(&self.jobs).change(id, |job| job.progress = Some(progress));
        self.tell(Message::Step(event.into()));
    }

    /// Notes what the running job came to.
    pub fn finish(&self, id: u64, outcome: Outcome) {
        let mut jobs = lock(&self.jobs);
        jobs.running = None;
        jobs.change(id, |job| {
            job.state = outcome.state;
            job.progress = None;
            job.images = outcome.images;
            job.error = outcome.error;
            job.seed = outcome.seed;
            job.seconds = Some(outcome.seconds);
        });
        drop(jobs);
        self.tell(Message::Jobs);
    }

    /// Takes a job out of the queue, or asks the running one to stop. What has ended stays as it is.
    pub fn cancel(&self, id: u64) -> Option<Job> {
        let mut jobs = lock(&self.jobs);
        if let Some(place) = jobs.waiting.iter().position(|work| work.id == id) {
            jobs.waiting.remove(place);
            jobs.change(id, |job| job.state = State::Cancelled);
        } else if let Some((running, cancelled)) = &jobs.running
            && *running == id
        {
            cancelled.store(true, Ordering::Relaxed);
        }
        let job = jobs.find(id);
        drop(jobs);
        self.tell(Message::Jobs);
        job
    }

    /// The state of a job.
    pub fn get(&self, id: u64) -> Option<Job> {
        lock(&self.jobs).find(id)
    }

    /// All jobs in order of arrival.
    pub fn list(&self) -> Vec<Job> {
        let jobs = lock(&self.jobs);
        jobs.all.iter().filter_map(|job| jobs.find(job.id)).collect()
    }

    /// Refuses further jobs, drops waiting ones, and stops the running one.
    pub fn close(&self) {
        let mut jobs = lock(&self.jobs);
        jobs.closed = true;
        while let Some(work) = jobs.waiting.pop_front() {
            jobs.change(work.id, |job| job.state = State::Cancelled);
        }
        if let Some((_, cancelled)) = &jobs.running {
            cancelled.store(true, Ordering::Relaxed);
        }
        drop(jobs);
        self.changed.notify_all();
        self.tell(Message::End);
    }

    pub fn closed(&self) -> bool {
        lock(&self.jobs).closed
    }

    pub fn listen(&self) -> broadcast::Receiver<Message> {
        self.messages.subscribe()
    }

    /// Sends a message to all listeners.
    pub fn tell(&self, message: Message) {
        let _ = self.messages.send(message);
    }
}

impl Jobs {
    fn change(&mut self, id: u64, change: impl FnOnce(&mut Job)) {
        if let Some(job) = self.all.iter_mut().find(|job| job.id == id) {
            change(job);
        }
    }

    fn find(&self, id: u64) -> Option<Job> {
        let mut job = self.all.iter().find(|job| job.id == id)?.clone();
        let running = usize::from(self.running.is_some());
        job.position = self.waiting.iter().position(|work| work.id == id).map(|place| place + running);
        Some(job)
    }
}
