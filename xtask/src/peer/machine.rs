//! The processor that the results were measured on.

/// Instruction sets that select the kernels of either side.
const INSTRUCTION_SETS: [&str; 6] = ["avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "sve"];

/// Model and instruction sets, where the system reports them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Processor {
    pub model: String,
    pub instruction_sets: Vec<String>,
}

impl Processor {
    /// Returns this machine's processor.
    pub fn here() -> Self {
        let mut processor = std::fs::read_to_string("/proc/cpuinfo").map(|text| Self::parse(&text)).unwrap_or_default();
        if processor.model.is_empty() {
            processor.model = std::env::consts::ARCH.into();
        }
        processor
    }

    /// Parses the contents of `/proc/cpuinfo`.
    fn parse(cpuinfo: &str) -> Self {
        let value = |keys: &[&str]| {
            let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
            let mut matching = fields.filter(|(key, _)| keys.contains(&key.trim()));
            matching.next().map_or("", |(_, value)| value.trim())
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
    fn model_and_relevant_instruction_sets_are_read() {
        let cpuinfo = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu avx avx2 avx512f avx512_bf16 avx512vl\n\
                       processor\t: 1\nmodel name\t: another\n";
        let processor = Processor::parse(cpuinfo);
        assert_eq!(processor.model, "AMD EPYC");
        assert_eq!(processor.instruction_sets, ["avx2", "avx512f", "avx512_bf16"]);
    }

    #[test]
    fn missing_fields_are_empty() {
        assert_eq!(Processor::parse("BogoMIPS: 50\n"), Processor::default());
    }
}
