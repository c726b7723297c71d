//! `configure_allocator` in a separate process, because it changes process-wide settings.
#![allow(clippy::print_stdout, reason = "reports like a test")]

/// Runs without the test harness, whose threads allocate memory before a test begins.
fn main() {
    // Fragments the heap, as in a program that has already run.
    let before: Vec<Vec<u8>> = (0..200).map(|i| vec![1; 16 + i * 8]).collect();
    drop(before);
    let configured = dalle2_kernels::configure_allocator();
    assert_eq!(configured, dalle2_kernels::configure_allocator(), "a second call returns the same");
    #[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
    linux::half_of_the_memory_has_huge_pages(configured);
    println!("test huge_pages ... ok");
}

#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod linux {
    use std::fs;

    const GIB: usize = 1 << 30;

    /// Bytes of the mappings with the flag `hg` (huge pages advised) in /proc/self/smaps.
    fn advised_bytes() -> usize {
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

    fn contains(file: &str, words: &[&str]) -> bool {
        fs::read_to_string(file).is_ok_and(|text| words.iter().any(|word| text.contains(word)))
    }

    /// Half of the memory in multiples of 1 GiB if huge pages are in `madvise` mode and address space is unlimited, else 0.
    fn expected() -> usize {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let unlimited = |name: &str| {
            let limit = limits.lines().find_map(|line| line.strip_prefix(name));
            limit.is_some_and(|limit| limit.split_whitespace().next() == Some("unlimited"))
        };
        let overcommits = contains("/proc/sys/vm/overcommit_memory", &["0", "1"]);
        let on_advice = contains("/sys/kernel/mm/transparent_hugepage/enabled", &["[madvise]"]);
        if !on_advice || !overcommits || !unlimited("Max address space") || !unlimited("Max data size") {
            return 0;
        }
        let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib: usize = total.and_then(|kib| kib.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0);
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limits = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        (limits.fold(kib * 1024, usize::min) / 2 / GIB).min(64) * GIB
    }

    pub fn half_of_the_memory_has_huge_pages(configured: bool) {
        let expected = if configured { expected() } else { 0 };
        let advised = advised_bytes();
        assert!(advised >= expected, "huge pages for {advised} bytes, expected {expected}");
        // Freeing a large block at the end of the heap must not return them.
        drop((0..3).map(|_| vec![1u8; 64 << 20]).collect::<Vec<_>>());
        let advised = advised_bytes();
        assert!(advised >= expected, "huge pages for {advised} bytes afterwards, expected {expected}");
    }
}
