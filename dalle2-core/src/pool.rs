//! Where the operations of a network run on the CPU.

use std::sync::atomic::{AtomicUsize, Ordering};

use burn::prelude::Device;

use crate::nn;

/// Runs `work`, many operations on `device`, where it can share them with other threads soonest.
///
/// Operations of the CPU backend divide their work between the threads of rayon's pool. A thread outside of the pool has to
/// wake one of its threads for every operation, and to wait until it is woken itself, which takes longer than a small
/// operation. Here the whole of `work` moves to a thread of the pool, and the caller waits for it. That thread has thread
/// locals of its own, and a stack of the size that rayon gives it (2 MiB unless told otherwise).
///
/// `work` stays on the caller's thread where the device is not the CPU, the pool has one thread, or the caller is of a pool
/// already; and while there is other work that was given to this function. A thread of the pool that waits for others takes
/// up what it finds, so it could begin one computation in the midst of another, which would wait for its end. For the same
/// reason `work` must not wait for a lock that is held by a thread that computes on the CPU meanwhile.
///
/// Steps of the samplers and of the trainer do this by themselves.
///
/// # Panics
/// When `work` does.
pub fn on_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    /// What runs, on the pool or where it was.
    static RUNNING: AtomicUsize = AtomicUsize::new(0);

    /// Counts down, also after a panic.
    struct Turn;

    impl Drop for Turn {
        fn drop(&mut self) {
            RUNNING.fetch_sub(1, Ordering::Release);
        }
    }

    if !nn::is_cpu(device) || rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1 {
        return work();
    }
    let alone = RUNNING.fetch_add(1, Ordering::Acquire) == 0;
    let _turn = Turn;
    if alone { rayon::scope(|_| work()) } else { work() }
}
