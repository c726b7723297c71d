//! Progress: bars on a terminal, plain lines on standard error elsewhere.

use std::cell::RefCell;
use std::io::IsTerminal;

use dalle2::{Controls, Event};
use indicatif::{ProgressBar, ProgressStyle};

use crate::interrupt;

/// Share of the work after which a plain line is printed.
const PLAIN_SHARE: u64 = 10;

fn bar(template: &str) -> ProgressBar {
    // The templates are constants; a style that fails to parse leaves the default one.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::no_length().with_style(style)
}

fn on_terminal() -> bool {
    std::io::stderr().is_terminal()
}

/// Progress through the sampling steps of each stage.
pub struct Stages {
    bar: Option<ProgressBar>,
    last: RefCell<String>,
}

impl Stages {
    /// Starts at no stage, and handles Ctrl-C.
    pub fn new() -> Self {
        interrupt::watch();
        let bar = on_terminal().then(|| bar("{msg:14} {bar:30} {pos}/{len}"));
        Self { bar, last: RefCell::default() }
    }

    /// Shows an event; fails after Ctrl-C.
    pub fn show(&self, event: &Event<'_>) -> dalle2::Result<()> {
        let stage = event.stage.to_string();
        if let Some(bar) = &self.bar {
            bar.set_length(event.total as u64);
            bar.set_position(event.step as u64);
            bar.set_message(stage);
        } else if *self.last.borrow() != stage {
            eprintln!("{stage}: {} steps", event.total);
            *self.last.borrow_mut() = stage;
        }
        if interrupt::requested() { Err(dalle2::Error::Cancelled) } else { Ok(()) }
    }

    /// Controls of a manipulation that show its progress.
    pub fn controls(&self) -> Controls<'_> {
        Controls::new().hook(|event| self.show(&event))
    }
}

impl Drop for Stages {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress through a known number of items.
pub struct Items {
    bar: Option<ProgressBar>,
    noun: &'static str,
    done: RefCell<(u64, u64)>,
}

impl Items {
    /// Starts with `total` items to do; `noun` is their plural.
    pub fn new(total: usize, noun: &'static str) -> Self {
        let bar = on_terminal().then(|| bar("{msg} {bar:30} {pos}/{len} {eta}"));
        if let Some(bar) = &bar {
            bar.set_length(total as u64);
            bar.set_message(noun);
        }
        Self { bar, noun, done: RefCell::new((0, total as u64)) }
    }

    /// Counts `n` items as done.
    pub fn add(&self, n: usize) {
        let (before, total) = *self.done.borrow();
        let after = before + n as u64;
        *self.done.borrow_mut() = (after, total);
        match &self.bar {
            Some(bar) => bar.inc(n as u64),
            None if before * PLAIN_SHARE / total.max(1) != after * PLAIN_SHARE / total.max(1) => {
                eprintln!("{after}/{total} {}", self.noun);
            }
            None => {}
        }
    }

    /// Runs `print` without the bar in the way.
    pub fn suspend(&self, print: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }
}

impl Drop for Items {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// Progress of downloads.
#[cfg(feature = "hub")]
pub struct Downloads {
    bar: Option<ProgressBar>,
    last: RefCell<String>,
}

#[cfg(feature = "hub")]
impl Downloads {
    /// Starts at no file.
    pub fn new() -> Self {
        let bar = on_terminal().then(|| bar("{msg:50} {bar:20} {bytes}/{total_bytes} {bytes_per_sec}"));
        Self { bar, last: RefCell::default() }
    }

    /// Shows how much of a file there is.
    pub fn show(&self, file: &str, done: u64, total: u64) {
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(file.to_owned());
        } else if *self.last.borrow() != file {
            eprintln!("downloading {file}: {} MB", total / 1_000_000);
            file.clone_into(&mut self.last.borrow_mut());
        }
    }
}

#[cfg(feature = "hub")]
impl Drop for Downloads {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
