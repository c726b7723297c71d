//! Settings of the C library's allocator, and transparent huge pages.

/// Largest block size that the allocator retains after `free`.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAX_MMAP_THRESHOLD: i32 = i32::MAX;
/// Disables trimming of free memory at the end of the heap.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const NO_TRIMMING: i32 = -1;

/// Configures glibc to retain freed blocks for later allocations and advises transparent huge pages (`MADV_HUGEPAGE`) for
/// its heap. Returns whether the allocator accepted the settings.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn configure_allocator() -> bool {
    use std::sync::OnceLock;

    static CONFIGURED: OnceLock<bool> = OnceLock::new();

    *CONFIGURED.get_or_init(|| {
        // SAFETY: `mallopt` changes allocator settings under the allocator's lock. The trim threshold alone would disable
        // the dynamic mmap threshold, so it is set only after that one. One arena serves all threads: per-thread arenas
        // cannot hold blocks above 64 MiB and are trimmed regardless of the threshold.
        let configured = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAX_MMAP_THRESHOLD) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, NO_TRIMMING) == 1
                && libc::mallopt(libc::M_ARENA_MAX, 1) == 1
        };
        #[cfg(target_pointer_width = "64")]
        if configured {
            huge_pages::advise();
        }
        configured
    })
}

/// Does nothing: only glibc has these settings.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn configure_allocator() -> bool {
    false
}

/// Huge pages (2 MiB), which need 512 times fewer TLB entries than 4 KiB pages.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod huge_pages {
    use std::fs;

    /// Bytes reserved at a time, less than the largest block that the allocator retains.
    const BLOCK: usize = 1 << 30;

    /// Maximum number of reserved blocks.
    const MAX_BLOCKS: usize = 64;

    /// Reserves address space for half of the memory, advises huge pages for it (`MADV_HUGEPAGE`) and returns it to the
    /// allocator, which retains it. Only the header of each block is written.
    ///
    /// Does nothing if transparent huge pages are not in `madvise` mode, if address space is limited, or if the kernel
    /// does not overcommit memory.
    pub(crate) fn advise() {
        let contains = |file: &str, choice: &str| fs::read_to_string(file).is_ok_and(|text| text.contains(choice));
        let on_advice = contains("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]");
        // Mode 2 refuses reservations beyond the available memory.
        let overcommits = ["0", "1"].iter().any(|mode| contains("/proc/sys/vm/overcommit_memory", mode));
        if !on_advice || !overcommits || !unlimited(libc::RLIMIT_AS) || !unlimited(libc::RLIMIT_DATA) {
            return;
        }
        // SAFETY: `sysconf` only reads a setting.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return };
        let count = (memory(page) / 2 / BLOCK).min(MAX_BLOCKS);
        // SAFETY: `malloc` accepts any size.
        let blocks = (0..count).map(|_| unsafe { libc::malloc(BLOCK) });
        let blocks: Vec<_> = blocks.take_while(|block| !block.is_null()).collect();
        for block in blocks {
            let before = block.addr() % page;
            // SAFETY: the pages from the start to the end of the block belong to the allocator, and the advice changes no
            // data. The block comes from `malloc` and is not used afterwards.
            unsafe {
                libc::madvise(block.byte_sub(before), (before + BLOCK).next_multiple_of(page), libc::MADV_HUGEPAGE);
                libc::free(block);
            }
        }
    }

    /// Bytes of memory of the machine, or of the control group if that is less.
    fn memory(page: usize) -> usize {
        // SAFETY: `sysconf` only reads a setting.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        let machine = usize::try_from(pages).unwrap_or(0).saturating_mul(page);
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limits = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        limits.fold(machine, usize::min)
    }

    /// Whether a resource of the process is unlimited.
    fn unlimited(resource: libc::__rlimit_resource_t) -> bool {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `getrlimit` writes to a valid structure.
        let status = unsafe { libc::getrlimit(resource, &raw mut limit) };
        status == 0 && limit.rlim_cur == libc::RLIM_INFINITY
    }
}
