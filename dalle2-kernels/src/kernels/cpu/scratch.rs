//! Buffers that are reused between calls.
//!
//! The allocator returns large blocks to the operating system, which zeroes every page of the next one: a tenth to a
//! quarter of the time of a convolution.

use std::sync::{Mutex, PoisonError};

/// A pool of buffers, each of the largest size requested so far.
#[derive(Debug)]
pub(crate) struct Scratch<T>(Mutex<Vec<Vec<T>>>);

impl<T: Copy + Default> Scratch<T> {
    /// Creates an empty pool.
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// Calls `f` with a buffer of `length` elements with unspecified content.
    pub(crate) fn with<R>(&self, length: usize, f: impl FnOnce(&mut [T]) -> R) -> R {
        let mut buffer = self.buffers().pop().unwrap_or_default();
        if buffer.len() < length {
            // The content is not needed: free it before the new allocation.
            buffer = Vec::new();
            buffer.resize(length, T::default());
        }
        let result = f(&mut buffer[..length]);
        self.buffers().push(buffer);
        result
    }

    fn buffers(&self) -> std::sync::MutexGuard<'_, Vec<Vec<T>>> {
        // A panic cannot leave the list in an inconsistent state.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::Scratch;

    #[test]
    fn buffers_are_reused_and_grow() {
        static SCRATCH: Scratch<u32> = Scratch::new();
        SCRATCH.with(3, |buffer| {
            assert_eq!(buffer, [0; 3]);
            buffer.fill(7);
            // A buffer in use is not handed out again.
            SCRATCH.with(2, |other| assert_eq!(other, [0; 2]));
        });
        SCRATCH.with(2, |buffer| assert_eq!(buffer, [7; 2]));
        SCRATCH.with(5, |buffer| assert_eq!(buffer.len(), 5));
        assert!(SCRATCH.buffers().len() <= 2);
    }
}
