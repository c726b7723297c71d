//! The thread that a computation runs on. A separate process, because the pool is process-wide.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;

use burn::prelude::Device;
use dalle2_kernels::on_pool;

/// Serialises the tests.
static SERIAL: Mutex<()> = Mutex::new(());

fn is_on_pool() -> bool {
    rayon::current_thread_index().is_some()
}

#[test]
fn one_computation_at_a_time_moves_to_the_pool() {
    let _guard = SERIAL.lock().unwrap();
    let (device, has_workers) = (Device::flex(), rayon::current_num_threads() > 1);
    let (inner, other) = on_pool(&device, || {
        let other = thread::scope(|scope| scope.spawn(|| on_pool(&Device::flex(), is_on_pool)).join().unwrap());
        (is_on_pool(), other)
    });
    assert_eq!(inner, has_workers);
    assert!(!other || !has_workers, "a concurrent call stays on its thread");
    assert_eq!(on_pool(&device, || on_pool(&device, is_on_pool)), has_workers, "a nested call stays on its thread");
    // The second call outlasts the first; calls during that time stay on their threads.
    let (begin, began) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let second = on_pool(&device, move || {
        let second = thread::spawn(move || {
            on_pool(&Device::flex(), move || {
                begin.send(()).unwrap();
                // An error means that the test has ended.
                let _ = ended.recv();
                is_on_pool()
            })
        });
        began.recv().unwrap();
        second
    });
    assert!(!on_pool(&device, is_on_pool) || !has_workers, "a call beside a running call stays on its thread");
    drop(end);
    assert!(!second.join().unwrap() || !has_workers);
    assert_eq!(on_pool(&device, is_on_pool), has_workers);
    assert_eq!(on_pool(&device.autodiff(), is_on_pool), has_workers);
}

#[test]
fn a_panic_is_propagated_and_ends_the_call() {
    let _guard = SERIAL.lock().unwrap();
    let device = Device::flex();
    let panic = catch_unwind(AssertUnwindSafe(|| on_pool(&device, || panic!("no such shape")))).unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "no such shape");
    assert_eq!(on_pool(&device, is_on_pool), rayon::current_num_threads() > 1);
}
