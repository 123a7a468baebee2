//! The devices that can be stood in for.

/// An architecture and its limits, from the tables of the CUDA programming guide.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chip {
    /// A100: compute capability 8.0.
    Sm80,
    /// Compute capability 8.9.
    Sm89,
    /// H100: compute capability 9.0.
    Sm90,
}

impl Chip {
    /// The chip of a name such as `sm_80`.
    pub fn parse(name: &str) -> Option<Chip> {
        Some(match name {
            "sm_80" => Chip::Sm80,
            "sm_89" => Chip::Sm89,
            "sm_90" | "sm_90a" => Chip::Sm90,
            _ => return None,
        })
    }

    /// Major and minor of the compute capability.
    pub fn capability(self) -> (u32, u32) {
        match self {
            Chip::Sm80 => (8, 0),
            Chip::Sm89 => (8, 9),
            Chip::Sm90 => (9, 0),
        }
    }

    /// Multiprocessors.
    pub fn sms(self) -> u32 {
        match self {
            Chip::Sm80 => 108,
            Chip::Sm89 => 142,
            Chip::Sm90 => 132,
        }
    }

    /// The most bytes of shared memory of a CTA.
    pub fn shared_limit(self) -> u64 {
        match self {
            Chip::Sm80 => 163 << 10,
            Chip::Sm89 => 99 << 10,
            Chip::Sm90 => 227 << 10,
        }
    }

    /// Threads that a multiprocessor holds.
    pub fn threads_per_sm(self) -> u32 {
        if self == Chip::Sm89 { 1536 } else { 2048 }
    }

    /// How many CTAs of a size the device holds at once, registers aside.
    pub(crate) fn resident(self, threads: u32, shared: u64) -> u64 {
        let by_threads = u64::from(self.threads_per_sm() / threads.next_multiple_of(32));
        let by_shared = (self.shared_limit() + 1024).checked_div(shared + 1024).unwrap_or(32);
        let most = if self == Chip::Sm89 { 24 } else { 32 };
        by_threads.min(by_shared).clamp(1, most) * u64::from(self.sms())
    }
}
