//! The thread that a computation runs on. Alone in this process, since there is one pool.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, mpsc};
use std::thread;

use burn::prelude::Device;
use dalle2_kernels::on_pool;

/// The tests wait for each other.
static ALONE: Mutex<()> = Mutex::new(());

fn within() -> bool {
    rayon::current_thread_index().is_some()
}

#[test]
fn one_computation_at_a_time_moves_to_the_pool() {
    let _alone = ALONE.lock().unwrap();
    let (device, several) = (Device::flex(), rayon::current_num_threads() > 1);
    let (inner, other) = on_pool(&device, || {
        let other = thread::scope(|scope| scope.spawn(|| on_pool(&Device::flex(), within)).join().unwrap());
        (within(), other)
    });
    assert_eq!(inner, several);
    assert!(!other || !several, "a second one stays where it is");
    assert_eq!(on_pool(&device, || on_pool(&device, within)), several, "within another, it stays there");
    // The second one outlasts the first; meanwhile nothing else moves.
    let (begin, began) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let second = on_pool(&device, move || {
        let second = thread::spawn(move || {
            on_pool(&Device::flex(), move || {
                begin.send(()).unwrap();
                // An error means that the test is over.
                let _ = ended.recv();
                within()
            })
        });
        began.recv().unwrap();
        second
    });
    assert!(!on_pool(&device, within) || !several, "while one runs where it was, the next one does too");
    drop(end);
    assert!(!second.join().unwrap() || !several);
    assert_eq!(on_pool(&device, within), several);
    assert_eq!(on_pool(&device.autodiff(), within), several);
}

#[test]
fn a_panic_comes_back_and_lets_the_next_one_in() {
    let _alone = ALONE.lock().unwrap();
    let device = Device::flex();
    let panic = catch_unwind(AssertUnwindSafe(|| on_pool(&device, || panic!("no such shape")))).unwrap_err();
    assert_eq!(*panic.downcast_ref::<&str>().unwrap(), "no such shape");
    assert_eq!(on_pool(&device, within), rayon::current_num_threads() > 1);
}
