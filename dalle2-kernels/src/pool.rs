//! Where the operations of a network run on the CPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use burn::prelude::Device;

use crate::is_cpu;

/// Runs `work`, many operations on `device`, where it can share them with other threads soonest.
///
/// Operations of the CPU backend divide their work between the threads of rayon's pool. A thread outside of the pool has to
/// wake one of its threads for every operation, and to wait until it is woken itself, which takes longer than a small
/// operation. Here the whole of `work` moves to a thread of the pool, and the caller waits for it. That thread has thread
/// locals of its own, and a stack of the size that rayon gives it (2 MiB unless told otherwise).
///
/// Until `work` ends, the other threads of the pool stay awake between operations, for waking them takes as long as a
/// small operation too. Where nothing comes for a while they let other threads of the machine go first, and rest after
/// some milliseconds. They also do what others give to the pool; what they had begun for others before may wait until
/// `work` ends.
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

    if !is_cpu(device) || rayon::current_thread_index().is_some() || rayon::current_num_threads() == 1 {
        return work();
    }
    let alone = RUNNING.fetch_add(1, Ordering::Acquire) == 0;
    let _turn = Turn;
    if alone { awake(work) } else { work() }
}

/// How long the threads of a pool may take to come, and how long that is waited for without a pause.
const COMING: Duration = Duration::from_micros(200);
const SOON: Duration = Duration::from_micros(20);
/// How long a thread that finds nothing to do looks on without a pause, and how long before it rests.
const BUSY: Duration = Duration::from_micros(50);
const PATIENT: Duration = Duration::from_millis(5);
/// How long it rests at a time.
const REST: Duration = Duration::from_micros(100);

/// What the thread of a computation and its helpers know of each other.
#[derive(Default)]
struct Helpers {
    /// Those that came, or [`CLOSED`].
    came: AtomicUsize,
    /// Whether they can go.
    done: AtomicBool,
}

/// Nobody may come any more.
const CLOSED: usize = usize::MAX;

impl Helpers {
    /// Sends for so many, waits for them, and goes on with those that came in time.
    ///
    /// A thread that comes later might do so in the midst of a part of the computation, and keep that from its end.
    fn gather(self: &Arc<Self>, count: usize) {
        for _ in 0..count {
            let helpers = self.clone();
            // Nobody waits for their end: they may have taken up what others gave to the pool.
            rayon::spawn(move || helpers.help());
        }
        let start = Instant::now();
        while self.came.load(Ordering::Acquire) < count && start.elapsed() < COMING {
            if start.elapsed() < SOON { std::hint::spin_loop() } else { thread::yield_now() }
        }
        self.came.store(CLOSED, Ordering::Release);
    }

    /// Does what there is to do in the pool, until the computation is done.
    fn help(&self) {
        let come = |came: usize| (came != CLOSED).then(|| came + 1);
        if self.came.fetch_update(Ordering::AcqRel, Ordering::Acquire, come).is_err() {
            return;
        }
        let mut idle: Option<Instant> = None;
        while !self.done.load(Ordering::Acquire) {
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
}

/// Runs `work` on a thread of the pool, while the others look for parts of it.
fn awake<R: Send>(work: impl FnOnce() -> R + Send) -> R {
    /// Lets the helpers go, also after a panic.
    struct Done(Arc<Helpers>);

    impl Drop for Done {
        fn drop(&mut self) {
            self.0.done.store(true, Ordering::Release);
        }
    }

    rayon::scope(|_| {
        let helpers = Done(Arc::default());
        helpers.0.gather(rayon::current_num_threads() - 1);
        work()
    })
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::mpsc;
    use std::thread;
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

    /// Fails where `f` does not come to its end.
    fn in_time(f: impl FnOnce() + Send + 'static) {
        let (send, done) = mpsc::channel();
        thread::spawn(move || {
            f();
            send.send(()).unwrap();
        });
        assert!(done.recv_timeout(Duration::from_secs(60)).is_ok(), "it hangs");
    }

    #[test]
    fn a_thread_that_comes_too_late_does_not_stay() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            for _ in 0..50 {
                let (release, released) = mpsc::channel::<()>();
                let found = pool.install(|| {
                    rayon::spawn(move || assert!(released.recv().is_err()));
                    awake(|| {
                        drop(release);
                        sum(0, 100_000)
                    })
                });
                assert_eq!(found, 4_999_950_000);
            }
        });
    }

    #[test]
    fn what_others_gave_to_the_pool_is_not_waited_for() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
            let (send, received) = mpsc::channel();
            pool.install(|| awake(|| rayon::spawn(move || assert_eq!(received.recv(), Ok(7)))));
            // Only now, after `awake` has returned.
            send.send(7).unwrap();
        });
    }

    #[test]
    fn threads_rest_and_go_on_and_a_panic_lets_them_go() {
        in_time(|| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
            let rested = || {
                thread::sleep(Duration::from_millis(20));
                sum(0, 1000)
            };
            assert_eq!(pool.install(|| awake(rested)), 499_500);
            let panic = || pool.install(|| awake(|| panic!("no such shape")));
            assert!(catch_unwind(AssertUnwindSafe(panic)).is_err());
            assert_eq!(pool.install(|| awake(|| sum(0, 10))), 45);
        });
    }
}
