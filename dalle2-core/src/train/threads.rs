//! A thread for each device.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};

use burn::prelude::*;
use burn::tensor::GradientCheckpointingStrategy;

use crate::{ConfigError, Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// Devices with one thread each, which end when this value is dropped.
///
/// This is the multi-device mechanism: the trainer's `run_on` computes one batch per device with it, and CLIP's task divides
/// one batch among the devices. On a GPU, Burn gives each thread a stream with a memory pool; short-lived threads would
/// leave their pools allocated.
pub struct DeviceThreads {
    devices: Vec<Device>,
    threads: Vec<Sender<Job>>,
}

impl DeviceThreads {
    /// Starts the threads. The devices get the autodiff settings of `main`, the device of the model.
    ///
    /// # Errors
    /// If there are no devices, the first one is not `main`, or a thread cannot be started.
    pub fn start(main: &Device, devices: &[Device]) -> Result<Self> {
        if devices.first().map(|device| device.clone().inner()) != Some(main.clone().inner()) {
            let expected = format!("the model is on {main:?}: the first device must be its own");
            return Err(ConfigError::new("devices", format!("{devices:?}"), expected).into());
        }
        let devices: Vec<Device> = devices.iter().map(|device| like(main, device.clone().inner())).collect();
        let threads = (0..devices.len()).map(|index| {
            let (sender, jobs) = mpsc::channel::<Job>();
            std::thread::Builder::new()
                .name(format!("device {index}"))
                .spawn(move || jobs.into_iter().for_each(|job| job()))
                .map_err(|e| Error::Training(format!("cannot start a thread for device {index}: {e}")))?;
            Ok(sender)
        });
        Ok(Self { threads: threads.collect::<Result<_>>()?, devices })
    }

    /// The devices, with autodiff.
    pub fn devices(&self) -> &[Device] {
        &self.devices
    }

    /// Runs the n-th job on the n-th thread, all in parallel, and returns their results in the order of the devices. There
    /// may be fewer jobs than devices.
    ///
    /// # Errors
    /// If a job panics; the others run to their end.
    ///
    /// # Panics
    /// If there are more jobs than devices.
    pub fn run<T, F>(&self, jobs: impl IntoIterator<Item = F>) -> Result<Vec<T>>
    where
        T: Send + 'static,
        F: FnOnce(&Device) -> T + Send + 'static,
    {
        let started: Vec<_> = jobs
            .into_iter()
            .enumerate()
            .map(|(index, job)| {
                let (answer, receiver) = mpsc::channel();
                let device = self.devices[index].clone();
                let job = move || {
                    // The receiver waits for it.
                    let _ = answer.send(catch_unwind(AssertUnwindSafe(|| job(&device))));
                };
                let sent = self.threads[index].send(Box::new(job));
                (index, receiver, sent.is_ok())
            })
            .collect();
        let answers: Vec<_> =
            started.into_iter().map(|(index, receiver, sent)| (index, sent.then(|| receiver.recv().ok()))).collect();
        let results = answers.into_iter().map(|(index, answer)| {
            let problem = match answer.flatten() {
                Some(Ok(value)) => return Ok(value),
                Some(Err(panic)) => panic_message(panic.as_ref()),
                None => "its thread has ended".into(),
            };
            Err(Error::Training(format!("device {index}, {:?}: {problem}", self.devices[index])))
        });
        results.collect()
    }
}

impl fmt::Debug for DeviceThreads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceThreads").field("devices", &self.devices).finish_non_exhaustive()
    }
}

/// `device` with autodiff as on `main`.
fn like(main: &Device, device: Device) -> Device {
    match main.gradient_checkpointing_strategy() {
        Some(GradientCheckpointingStrategy::Balanced) => device.autodiff().gradient_checkpointing(),
        _ => device.autodiff(),
    }
}

/// Returns the message of a panic.
pub fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("no message").to_string()
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Barrier};
    use std::thread::{self, ThreadId};

    use super::*;

    fn three() -> DeviceThreads {
        DeviceThreads::start(&Device::flex().autodiff(), &[Device::flex(), Device::flex(), Device::flex()]).unwrap()
    }

    #[test]
    fn every_device_keeps_its_thread_and_all_run_at_once() {
        let threads = three();
        let run = || -> Vec<(usize, ThreadId, bool)> {
            // All three threads must arrive before one passes.
            let barrier = Arc::new(Barrier::new(3));
            let jobs = (0..3).map(|index| {
                let barrier = barrier.clone();
                move |device: &Device| {
                    barrier.wait();
                    (index, thread::current().id(), device.is_autodiff())
                }
            });
            threads.run(jobs).unwrap()
        };
        let (first, second) = (run(), run());
        assert_eq!(first, second);
        assert_eq!(first.iter().map(|(index, ..)| *index).collect::<Vec<_>>(), [0, 1, 2]);
        assert!(first.iter().all(|(_, id, autodiff)| *id != thread::current().id() && *autodiff));
        assert!(first[0].1 != first[1].1 && first[1].1 != first[2].1);
    }

    #[test]
    fn a_panic_names_the_device_and_the_thread_lives_on() {
        let threads = three();
        let job = |index: usize, broken: usize| {
            move |_: &Device| {
                assert!(index != broken, "out of memory");
                index
            }
        };
        let error = threads.run((0..3).map(|index| job(index, 1))).unwrap_err().to_string();
        assert!(error.contains("device 1") && error.contains("out of memory"), "{error}");
        assert_eq!(threads.run((0..2).map(|index| job(index, 9))).unwrap(), [0, 1]);
    }

    #[test]
    fn without_the_devices_of_the_model_there_are_no_threads() {
        let error = DeviceThreads::start(&Device::flex().autodiff(), &[]).unwrap_err().to_string();
        assert!(error.contains("`devices` = []") && error.contains("the first device"), "{error}");
    }
}
