//! `keep_memory` in a process of its own, for it is about all of one.
#![allow(clippy::print_stdout, reason = "it reports as a test does")]

/// Runs without the harness, whose threads have taken memory before a test begins.
fn main() {
    // As in a program that did something before: freed blocks of all sizes lie about.
    let before: Vec<Vec<u8>> = (0..200).map(|i| vec![1; 16 + i * 8]).collect();
    drop(before);
    let heard = dalle2_kernels::keep_freed();
    assert_eq!(heard, dalle2_kernels::keep_freed(), "a second call says the same");
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    linux::half_of_the_memory_has_large_pages(heard);
    println!("test large_pages ... ok");
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod linux {
    use std::fs;

    const GIB: usize = 1 << 30;

    /// Bytes of the mappings for which large pages were asked, by /proc/self/smaps.
    fn in_large_pages() -> usize {
        let mut size = 0;
        let mut sum = 0;
        for line in fs::read_to_string("/proc/self/smaps").unwrap_or_default().lines() {
            if let Some(kib) = line.strip_prefix("Size:") {
                size = kib.trim().trim_end_matches(" kB").parse().unwrap_or(0) * 1024;
            } else if line.strip_prefix("VmFlags:").is_some_and(|flags| flags.split(' ').any(|flag| flag == "hg")) {
                sum += size;
            }
        }
        sum
    }

    fn says(file: &str, words: &[&str]) -> bool {
        fs::read_to_string(file).is_ok_and(|text| words.iter().any(|word| text.contains(word)))
    }

    /// What is to be expected: half of the memory in whole GiB, where the system has large pages for those who ask and
    /// gives out addresses freely.
    fn expected() -> usize {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let unlimited = |name: &str| {
            let limit = limits.lines().find_map(|line| line.strip_prefix(name));
            limit.is_some_and(|limit| limit.split_whitespace().next() == Some("unlimited"))
        };
        let free = says("/proc/sys/vm/overcommit_memory", &["0", "1"]);
        let asked = says("/sys/kernel/mm/transparent_hugepage/enabled", &["[madvise]"]);
        if !asked || !free || !unlimited("Max address space") || !unlimited("Max data size") {
            return 0;
        }
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: usize = total.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limits = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        (limits.fold(kib * 1024, usize::min) / 2 / GIB).min(64) * GIB
    }

    pub fn half_of_the_memory_has_large_pages(heard: bool) {
        let expected = if heard { expected() } else { 0 };
        let found = in_large_pages();
        assert!(found >= expected, "large pages for {found} bytes, expected {expected}");
        // Nor are they lost when a large block at the end of the heap is freed.
        drop((0..3).map(|_| vec![1u8; 64 << 20]).collect::<Vec<_>>());
        let found = in_large_pages();
        assert!(found >= expected, "large pages for {found} bytes afterwards, expected {expected}");
    }
}
