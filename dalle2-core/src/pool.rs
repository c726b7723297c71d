//! Where the operations of a network run on the CPU.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::prelude::Device;

use crate::nn;

/// Runs `work`, many operations on `device`, where it can share them with other threads soonest.
///
/// Operations of the CPU backend divide their work between the threads of rayon's pool. A thread outside of the pool has to
/// wake one of its threads for every operation, and to wait until it is woken itself, which takes longer than a small
/// operation. Here the whole of `work` moves to a thread of the pool, and the caller waits for it. That thread has thread
/// locals of its own, and a stack of the size that rayon gives it (2 MiB unless told otherwise).
///
/// Until `work` ends, the other threads of the pool stay awake between operations, for waking them takes as long as a
/// small operation too. They let other threads of the machine go first, and rest where nothing comes for some
/// milliseconds.
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
    if alone { awake(work) } else { work() }
}

/// How long the threads of a pool may take to come.
const COMING: Duration = Duration::from_millis(2);
/// How long a thread that finds nothing to do looks on without a pause, and how long before it rests.
const BUSY: Duration = Duration::from_micros(50);
const PATIENT: Duration = Duration::from_millis(5);
/// How long it rests at a time.
const REST: Duration = Duration::from_micros(100);

/// Runs `work` on a thread of the pool, while the others look for parts of it.
fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    /// Tells the others that they can go, also after a panic.
    struct Done<'a>(&'a AtomicBool);

    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }

    /// Nobody may come any more.
    const CLOSED: usize = usize::MAX;

    let (came, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    rayon::scope(|scope| {
        let others = rayon::current_num_threads() - 1;
        for _ in 0..others {
            scope.spawn(|_| {
                // A thread that comes later might do so in the midst of a part of `work`, and keep that from its end.
                let come = |came: usize| (came != CLOSED).then(|| came + 1);
                if came.fetch_update(Ordering::AcqRel, Ordering::Acquire, come).is_ok() {
                    look_for_work(&done);
                }
            });
        }
        let start = Instant::now();
        while came.load(Ordering::Acquire) < others && start.elapsed() < COMING {
            std::hint::spin_loop();
        }
        came.store(CLOSED, Ordering::Release);
        let _done = Done(&done);
        work()
    })
}

/// Does what there is to do in the pool, until `done`.
fn look_for_work(done: &AtomicBool) {
    let mut idle: Option<Instant> = None;
    while !done.load(Ordering::Acquire) {
        if rayon::yield_now() == Some(rayon::Yield::Executed) {
            idle = None;
            continue;
        }
        match idle.get_or_insert_with(Instant::now).elapsed() {
            looked if looked < BUSY => std::hint::spin_loop(),
            looked if looked < PATIENT => thread::yield_now(),
            _ => thread::sleep(REST),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use super::awake;

    /// A sum by parts of parts, so that threads wait within what they wait for.
    fn sum(from: u64, to: u64) -> u64 {
        if to - from < 8 {
            return (from..to).sum();
        }
        let middle = from.midpoint(to);
        let (a, b) = rayon::join(|| sum(from, middle), || sum(middle, to));
        a + b
    }

    #[test]
    fn parts_of_parts_come_to_an_end_with_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for n in (0..300).map(|i| i * 17) {
                let found = pool.install(|| awake(|| [sum(0, n), sum(0, n / 2)]));
                assert_eq!(found, [n, n / 2].map(|n| n * n.saturating_sub(1) / 2), "{threads} threads");
            }
        }
    }

    #[test]
    fn threads_come_back_after_a_rest_and_go_after_a_panic() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        pool.install(|| {
            let rested = awake(|| {
                std::thread::sleep(Duration::from_millis(20));
                sum(0, 1000)
            });
            assert_eq!(rested, 499_500);
            assert!(catch_unwind(AssertUnwindSafe(|| awake(|| panic!("no such shape")))).is_err());
            assert_eq!(awake(|| sum(0, 10)), 45);
        });
    }
}
