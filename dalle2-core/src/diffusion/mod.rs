//! Noise schedules, prediction types, guidance, samplers and noise sources.
