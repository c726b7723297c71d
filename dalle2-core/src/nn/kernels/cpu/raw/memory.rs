//! What the C library does with memory that is freed.

/// Largest block and largest rest that the allocator keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = i32::MAX;

/// Tells the allocator to keep freed blocks for the next ones; whether it was heard.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed() -> bool {
    // SAFETY: the calls set numbers of the allocator under its lock. The second one alone would end its own choice of the
    // first, so it comes only when the first was taken. Threads share one arena by the third: those of their own have no
    // room for blocks above 64 MiB, and give back what is free whatever the threshold says.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT) == 1
            && libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT) == 1
            && libc::mallopt(libc::M_ARENA_MAX, 1) == 1
    }
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() -> bool {
    false
}
