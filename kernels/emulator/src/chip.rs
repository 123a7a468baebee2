//! The devices that can be stood in for.

/// An architecture and its limits, from the tables of the CUDA programming guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// A100: compute capability 8.0.
    Sm80,
    /// Compute capability 8.6.
    Sm86,
    /// Compute capability 8.9.
    Sm89,
    /// H100: compute capability 9.0.
    Sm90,
}

impl Chip {
    /// Every chip, in order of capability.
    pub const ALL: [Chip; 4] = [Chip::Sm80, Chip::Sm86, Chip::Sm89, Chip::Sm90];

    /// The chip of a name such as `sm_80`.
    pub fn parse(name: &str) -> Option<Chip> {
        let name = if name == "sm_90a" { "sm_90" } else { name };
        Self::ALL.into_iter().find(|chip| chip.name() == name)
    }

    /// Its name, such as `sm_80`.
    pub fn name(self) -> &'static str {
        match self {
            Chip::Sm80 => "sm_80",
            Chip::Sm86 => "sm_86",
            Chip::Sm89 => "sm_89",
            Chip::Sm90 => "sm_90",
        }
    }

    /// Major and minor of the compute capability.
    pub fn capability(self) -> (u32, u32) {
        match self {
            Chip::Sm80 => (8, 0),
            Chip::Sm86 => (8, 6),
            Chip::Sm89 => (8, 9),
            Chip::Sm90 => (9, 0),
        }
    }

    /// Multiprocessors.
    pub fn sms(self) -> u32 {
        match self {
            Chip::Sm80 => 108,
            Chip::Sm86 => 84,
            Chip::Sm89 => 142,
            Chip::Sm90 => 132,
        }
    }

    /// The most bytes of shared memory of a CTA.
    pub fn shared_limit(self) -> u64 {
        match self {
            Chip::Sm80 => 163 << 10,
            Chip::Sm86 | Chip::Sm89 => 99 << 10,
            Chip::Sm90 => 227 << 10,
        }
    }

    /// Threads that a multiprocessor holds.
    pub fn threads_per_sm(self) -> u32 {
        if matches!(self, Chip::Sm86 | Chip::Sm89) { 1536 } else { 2048 }
    }

    /// The most CTAs that a multiprocessor holds.
    pub fn ctas_per_sm(self) -> u32 {
        match self {
            Chip::Sm86 => 16,
            Chip::Sm89 => 24,
            Chip::Sm80 | Chip::Sm90 => 32,
        }
    }

    /// How many CTAs of so many threads and bytes of shared memory a multiprocessor holds at once, registers aside.
    pub fn resident_per_sm(self, threads: u32, shared: u64) -> u32 {
        let by_threads = self.threads_per_sm() / threads.max(1).next_multiple_of(32);
        let by_shared = (self.shared_limit() + 1024) / (shared + 1024);
        by_threads.min(by_shared as u32).min(self.ctas_per_sm())
    }

    /// How many CTAs of a size the device holds at once, registers aside.
    pub(crate) fn resident(self, threads: u32, shared: u64) -> u64 {
        u64::from(self.resident_per_sm(threads, shared).max(1)) * u64::from(self.sms())
    }
}
