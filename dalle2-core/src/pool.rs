//! Where the operations of a network run on the CPU.

use std::sync::atomic::{AtomicBool, Ordering};

use burn::prelude::Device;

use crate::nn;

/// Runs `work`, many operations on `device`, where it can share them with other threads soonest.
///
/// Operations of the CPU backend divide their work between the threads of rayon's pool. A thread outside of the pool has to
/// wake one of it for every operation, and to wait until it is woken itself, which takes longer than a small operation.
/// Here the whole of `work` moves to a thread of the pool, and the caller waits for it.
///
/// It stays on its thread where the device is not the CPU, the pool has one thread, or the thread is one of a pool; and
/// while the work of another thread is in the pool, since a thread that waits there could take up the one in the midst of
/// the other. Steps of the samplers and of the trainer do this by themselves.
///
/// # Panics
/// When `work` does.
pub fn on_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    static TAKEN: AtomicBool = AtomicBool::new(false);

    /// Lets the next one in, also after a panic.
    struct Turn;

    impl Drop for Turn {
        fn drop(&mut self) {
            TAKEN.store(false, Ordering::Release);
        }
    }

    let outside = rayon::current_thread_index().is_none() && rayon::current_num_threads() > 1;
    if !(outside && nn::is_cpu(device)) || TAKEN.swap(true, Ordering::Acquire) {
        return work();
    }
    let _turn = Turn;
    rayon::scope(|_| work())
}
