//! Execution of many small CPU operations on the thread pool.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::prelude::Device;

use crate::is_cpu;

/// Runs `work`, a sequence of operations on `device`, on a worker of rayon's pool.
///
/// CPU operations divide their work between the workers of the pool. From a thread outside the pool every operation wakes
/// a worker and waits to be woken by it, which takes longer than a small operation. This function moves `work` to a worker
/// once; the caller waits. That worker has its own thread locals and the stack size of the pool (2 MiB by default).
///
/// Until `work` ends, the other workers stay awake between operations, because waking them takes as long as a small
/// operation too. Idle workers yield the processor, and sleep after some milliseconds. They also run tasks from elsewhere;
/// tasks that they had begun before may be delayed until `work` ends.
///
/// `work` runs on the calling thread if the device is not the CPU, the pool has one thread, the caller is a worker itself,
/// or another call of this function is running: a waiting worker runs any task of the pool, so it could start a second
/// computation inside the first, which would have to wait for it. For the same reason `work` must not wait for a lock that
/// a thread holds while it computes on the CPU.
///
/// Samplers and the trainer call this function for each step.
///
/// # Panics
/// If `work` panics.
pub fn on_pool<R: Send>(device: &Device, work: impl FnOnce() -> R + Send) -> R {
    /// Number of running calls.
    static RUNNING: AtomicUsize = AtomicUsize::new(0);

    /// Decrements the counter on drop, also after a panic.
    struct RunningGuard;

    impl Drop for RunningGuard {
        fn drop(&mut self) {
            RUNNING.fetch_sub(1, Ordering::Release);
        }
    }

    if !is_cpu(device) || rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1 {
        return work();
    }
    let is_first = RUNNING.fetch_add(1, Ordering::Acquire) == 0;
    let _guard = RunningGuard;
    if is_first { with_awake_workers(work) } else { work() }
}

/// Maximum time to wait for workers to join, and the part of it that is spent spinning.
const WAKE_TIMEOUT: Duration = Duration::from_micros(200);
const WAKE_SPIN: Duration = Duration::from_micros(20);
/// How long an idle worker spins, and after which time it sleeps; it yields in between. Tuned with
/// `cargo xtask peer pipeline`.
const IDLE_SPIN: Duration = Duration::from_micros(50);
const IDLE_YIELD: Duration = Duration::from_millis(5);
/// Duration of one sleep of an idle worker.
const IDLE_SLEEP: Duration = Duration::from_micros(100);

/// The state shared by the worker of a computation and its helpers.
#[derive(Default)]
struct Helpers {
    /// Number of helpers that joined, or [`CLOSED`].
    joined: AtomicUsize,
    /// Whether the computation is done.
    done: AtomicBool,
}

/// Marks that no more helpers may join.
const CLOSED: usize = usize::MAX;

impl Helpers {
    /// Wakes `count` workers, waits for them to join, and proceeds with those that join before [`WAKE_TIMEOUT`].
    ///
    /// A worker must not join later: it could do so while it waits inside a task of the computation and so delay its end.
    fn wake(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            let helpers = self.clone();
            // Detached: a helper may be running a task from elsewhere when the computation ends.
            rayon::spawn(move || helpers.help());
        }
        let start = Instant::now();
        while self.joined.load(Ordering::Acquire) < count && start.elapsed() < WAKE_TIMEOUT {
            if start.elapsed() < WAKE_SPIN { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.joined.store(CLOSED, Ordering::Release);
    }

    /// Runs tasks of the pool until the computation is done.
    fn help(&self) {
        let join = |joined: usize| (joined != CLOSED).then(|| joined + 1);
        if self.joined.fetch_update(Ordering::AcqRel, Ordering::Acquire, join).is_err() {
            return;
        }
        let mut idle: Option<Instant> = None;
        while !self.done.load(Ordering::Acquire) {
            if rayon::yield_now() == Some(rayon::Yield::Executed) {
                idle = None;
                continue;
            }
            match idle.get_or_insert_with(Instant::now).elapsed() {
                idle_time if idle_time < IDLE_SPIN => std::hint::spin_loop(),
                idle_time if idle_time < IDLE_YIELD => thread::yield_now(),
                _ => thread::sleep(IDLE_SLEEP),
            }
        }
    }
}

/// Runs `work` on a worker while the other workers stay awake and take its tasks.
fn with_awake_workers<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    /// Releases the helpers on drop, also after a panic.
    struct DoneGuard(Arc<Helpers>);

    impl Drop for DoneGuard {
        fn drop(&mut self) {
            self.0.done.store(true, Ordering::Release);
        }
    }

    rayon::scope(|_| {
        let helpers = DoneGuard(Arc::default());
        helpers.0.wake(rayon::current_num_threads() - 1);
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use super::with_awake_workers;

    /// A sum by nested joins, so that workers wait inside tasks.
    fn sum(from: u64, to: u64) -> u64 {
        if to - from < 8 {
            return (from..to).sum();
        }
        let middle = from.midpoint(to);
        let (a, b) = rayon::join(|| sum(from, middle), || sum(middle, to));
        a + b
    }

    #[test]
    fn nested_joins_finish_with_any_number_of_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for n in (0..300).map(|i| i * 17) {
                let sums = pool.install(|| with_awake_workers(|| [sum(0, n), sum(0, n / 2)]));
                assert_eq!(sums, [n, n / 2].map(|n| n * n.saturating_sub(1) / 2), "{threads} threads");
            }
        }
    }

    /// Fails if `f` does not finish in time.
    fn in_time(f: impl FnOnce() + Send + 'static) {
        let (send, done) = mpsc::channel();
        thread::spawn(move || {
            f();
            send.send(()).unwrap();
        });
        assert!(done.recv_timeout(Duration::from_secs(60)).is_ok(), "the function hangs");
    }

    #[test]
    fn a_worker_that_joins_too_late_leaves() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            for _ in 0..50 {
                let (release, released) = mpsc::channel::<()>();
                let sums = pool.install(|| {
                    rayon::spawn(move || assert!(released.recv().is_err()));
                    with_awake_workers(|| {
                        drop(release);
                        sum(0, 100_000)
                    })
                });
                assert_eq!(sums, 4_999_950_000);
            }
        });
    }

    #[test]
    fn tasks_from_elsewhere_are_not_awaited() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let (send, received) = mpsc::channel();
            pool.install(|| with_awake_workers(|| rayon::spawn(move || assert_eq!(received.recv(), Ok(7)))));
            // `with_awake_workers` has returned before the task can finish.
            send.send(7).unwrap();
        });
    }

    #[test]
    fn idle_workers_sleep_and_resume_and_a_panic_releases_them() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let idle = || {
                thread::sleep(Duration::from_millis(20));
                sum(0, 1000)
            };
            assert_eq!(pool.install(|| with_awake_workers(idle)), 499_500);
            let panic = || pool.install(|| with_awake_workers(|| panic!("no such shape")));
            assert!(catch_unwind(AssertUnwindSafe(panic)).is_err());
            assert_eq!(pool.install(|| with_awake_workers(|| sum(0, 10))), 45);
        });
    }
}
