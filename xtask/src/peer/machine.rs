//! What the figures were measured on.

/// Instruction sets that decide which kernels both sides use.
const INSTRUCTION_SETS: [&str; 6] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"];

/// The processor, as far as the system tells.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processor {
    pub model: String,
    pub instruction_sets: Vec<String>,
}

impl Processor {
    /// This machine's.
    pub fn here() -> Self {
        let found = std::fs::read_to_string("/proc/cpuinfo").map(|text| Self::parse(&text)).unwrap_or_default();
        match found.model.is_empty() {
            true => Self { model: std::env::consts::ARCH.into(), ..found },
            false => found,
        }
    }

    /// Of the content of `/proc/cpuinfo`.
    fn parse(cpuinfo: &str) -> Self {
        let value = |keys: &[&str]| {
            let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            let mut found = fields.filter(|(key, _)| keys.contains(&key.trim()));
            found.next().map_or("", |(_, value)| value.trim())
        };
        let flags: Vec<&str> = value(&["flags", "Features"]).split_whitespace().collect();
        let sets = INSTRUCTION_SETS.into_iter().filter(|set| flags.contains(set)).map(str::to_owned);
        Self { model: value(&["model name", "Model"]).to_owned(), instruction_sets: sets.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sets_that_matter_are_named() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 avx512f avx512_bf16 avx512vl\n\
                       processor\t: 1\nmodel name\t: another\n";
        let found = Processor::parse(cpuinfo);
        assert_eq!(found.model, "AMD EPYC");
        assert_eq!(found.instruction_sets, ["avx2", "avx512f", "avx512_bf16"]);
    }

    #[test]
    fn a_file_that_says_nothing_gives_nothing() {
        assert_eq!(Processor::parse("BogoMIPS: 50\n"), Processor::default());
    }
}
