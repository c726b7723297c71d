//! What the C library and the system do with memory that is freed and taken.

/// Largest block that the allocator keeps.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT: i32 = i32::MAX;
/// Keeps what is free at the end of the heap, however large.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const NO_TRIMMING: i32 = -1;

/// Tells the allocator to keep freed blocks for the next ones, and the system to give it memory by large pages; whether
/// the allocator was heard.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
pub fn keep_freed() -> bool {
    use std::sync::OnceLock;

    static HEARD: OnceLock<bool> = OnceLock::new();

    *HEARD.get_or_init(|| {
        // SAFETY: the calls set numbers of the allocator under its lock. The second one alone would end its own choice of
        // the first, so it comes only when the first was taken. Threads share one arena by the third: those of their own
        // have no room for blocks above 64 MiB, and give back what is free whatever the threshold says.
        let heard = unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT) == 1
                && libc::mallopt(libc::M_TRIM_THRESHOLD, NO_TRIMMING) == 1
                && libc::mallopt(libc::M_ARENA_MAX, 1) == 1
        };
        #[cfg(target_pointer_width = "64")]
        if heard {
            large_pages::ask_for();
        }
        heard
    })
}

/// Other allocators are left as they are.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub fn keep_freed() -> bool {
    false
}

/// Pages of 2 MiB in place of those of 4 KiB, each of which a thread that walks through a large tensor has to look up.
#[cfg(all(target_os = "linux", target_env = "gnu", target_pointer_width = "64"))]
mod large_pages {
    use std::fs;

    /// Bytes of addresses that are taken at a time; less than the largest block that the allocator keeps.
    const BLOCK: usize = 1 << 30;

    /// The most that are taken.
    const MOST: usize = 64;

    /// Takes as many addresses as half of the memory has bytes, says of them that large pages are welcome, and gives them
    /// back to the allocator, which keeps them for the blocks to come. Nothing is written but the head of each block.
    ///
    /// Nothing is taken where the system gives large pages to all or to nobody, whoever asks; where addresses are limited;
    /// and where they count as memory that is used.
    pub fn ask_for() {
        let chosen = |file: &str, choice: &str| fs::read_to_string(file).is_ok_and(|text| text.contains(choice));
        let asked = chosen("/sys/kernel/mm/transparent_hugepage/enabled", "[madvise]");
        // With 2, the system gives no addresses for which it has no memory.
        let free = ["0", "1"].iter().any(|mode| chosen("/proc/sys/vm/overcommit_memory", mode));
        if !asked || !free || !unlimited(libc::RLIMIT_AS) || !unlimited(libc::RLIMIT_DATA) {
            return;
        }
        // SAFETY: it only asks.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        let Ok(page) = usize::try_from(page) else { return };
        let count = (memory(page) / 2 / BLOCK).min(MOST);
        // SAFETY: any size may be asked for.
        let blocks = (0..count).map(|_| unsafe { libc::malloc(BLOCK) });
        let blocks: Vec<_> = blocks.take_while(|block| !block.is_null()).collect();
        for block in blocks {
            let before = block.addr() % page;
            // SAFETY: from the page in which the block begins to the one in which it ends, memory is the allocator's, for
            // which this is advice and changes no value. The block comes from `malloc` and is not used afterwards.
            unsafe {
                libc::madvise(block.byte_sub(before), (before + BLOCK).next_multiple_of(page), libc::MADV_HUGEPAGE);
                libc::free(block);
            }
        }
    }

    /// Bytes of memory that the machine has, or this process may use.
    fn memory(page: usize) -> usize {
        // SAFETY: it only asks.
        let pages = unsafe { libc::sysconf(libc::_SC_PHYS_PAGES) };
        let of_machine = usize::try_from(pages).unwrap_or(0).saturating_mul(page);
        let limits = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"];
        let limits = limits.iter().filter_map(|file| fs::read_to_string(file).ok()?.trim().parse().ok());
        limits.fold(of_machine, usize::min)
    }

    /// Whether the process may have as much of something as it wants.
    fn unlimited(resource: libc::__rlimit_resource_t) -> bool {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: it writes to the structure that it is given.
        let found = unsafe { libc::getrlimit(resource, &raw mut limit) };
        found == 0 && limit.rlim_cur == libc::RLIM_INFINITY
    }
}
