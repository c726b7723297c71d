//! Advisory locks on directories that one process at a time may write.

use std::fs::{File, OpenOptions, TryLockError};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::{Error, Result};

/// Name of the lock file inside a locked directory.
const LOCK_FILE: &str = ".lock";
/// Pause between two attempts to take a lock.
const RETRY: Duration = Duration::from_millis(50);

/// An advisory lock on a directory, held until this value is dropped or the process ends.
///
/// The lock is on the file `.lock` in the directory. Only writers that use this type respect it, and readers need no
/// lock. On a file system without locks, a warning is logged and nothing is locked.
#[derive(Debug)]
pub struct DirLock {
    _file: File,
}

impl DirLock {
    /// Locks `dir`, which is created if it is missing.
    ///
    /// # Errors
    /// If the directory cannot be written, or another writer holds the lock.
    pub fn acquire(dir: impl AsRef<Path>) -> Result<Self> {
        Self::acquire_within(dir, Duration::ZERO)
    }

    /// Locks `dir` like [`DirLock::acquire`], but waits up to `patience` for another writer to release it.
    ///
    /// # Errors
    /// As [`DirLock::acquire`], after the waiting time.
    pub fn acquire_within(dir: impl AsRef<Path>, patience: Duration) -> Result<Self> {
        let dir = dir.as_ref();
        std::fs::create_dir_all(dir).map_err(|e| Error::io(dir, e))?;
        let path = dir.join(LOCK_FILE);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|e| Error::io(&path, e))?;
        let start = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Self { _file: file }),
                Err(TryLockError::WouldBlock) if start.elapsed() < patience => std::thread::sleep(RETRY),
                Err(TryLockError::WouldBlock) => {
                    let message = "is in use: another process holds its lock. Wait for it, or choose another directory";
                    return Err(Error::format(dir, message));
                }
                Err(TryLockError::Error(error)) if error.kind() == std::io::ErrorKind::Unsupported => {
                    tracing::warn!(path = %path.display(), "the file system has no locks: writing without one");
                    return Ok(Self { _file: file });
                }
                Err(TryLockError::Error(error)) => return Err(Error::io(&path, error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_writer_is_refused_until_the_first_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        let message = DirLock::acquire(dir.path()).unwrap_err().to_string();
        assert!(message.contains("is in use") && message.contains(&dir.path().display().to_string()), "{message}");
        drop(first);
        DirLock::acquire(dir.path()).unwrap();
    }

    #[test]
    fn a_patient_writer_waits() {
        let dir = tempfile::tempdir().unwrap();
        let first = DirLock::acquire(dir.path()).unwrap();
        let waiting = std::thread::scope(|scope| {
            let second = scope.spawn(|| DirLock::acquire_within(dir.path(), Duration::from_secs(30)));
            std::thread::sleep(Duration::from_millis(20));
            drop(first);
            second.join().unwrap()
        });
        waiting.unwrap();
    }
}
