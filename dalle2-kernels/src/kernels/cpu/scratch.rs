//! Memory that calls use one after another.
//!
//! A large block that is freed goes back to the operating system, and the next one has to be cleared page by page: that
//! was a tenth to a quarter of the time of a convolution.

use std::sync::{Mutex, PoisonError};

/// Buffers that are kept for the next call, each as large as the largest so far.
#[derive(Debug)]
pub struct Scratch<T>(Mutex<Vec<Vec<T>>>);

impl<T: Copy + Default> Scratch<T> {
    /// Without any.
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Calls `f` with a buffer of this length, which holds whatever the call before has left.
    pub fn with<R>(&self, length: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let mut buffer = self.kept().pop().unwrap_or_default();
        if buffer.len() < length {
            // What is in it is worth nothing: let it go before there is another.
            buffer = Vec::new();
            buffer.resize(length, T::default());
        }
        let result = f(&mut buffer[..length]);
        self.kept().push(buffer);
        result
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Vec<Vec<T>>> {
        // A list of buffers is never left in between.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn a_buffer_is_kept_and_grows() {
        static SCRATCH: Scratch<u32> = Scratch::new();
        SCRATCH.with(3, |buffer| {
            assert_eq!(buffer, [0; 3]);
            buffer.fill(7);
            // One that is in use is not given out.
            SCRATCH.with(2, |other| assert_eq!(other, [0; 2]));
        });
        SCRATCH.with(2, |buffer| assert_eq!(buffer, [7; 2]));
        SCRATCH.with(5, |buffer| assert_eq!(buffer.len(), 5));
        assert!(SCRATCH.kept().len() <= 2);
    }
}
