//! What a kernel did, counted: a performance signal without a clock.

use std::fmt;
use std::ops::AddAssign;

/// Classes of instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Integer arithmetic, bits, moves, predicates.
    Integer,
    /// Floating-point arithmetic outside of tensor cores.
    Float,
    /// Conversions between types.
    Convert,
    /// Branches and exits.
    Control,
    /// Loads, stores and copies.
    Memory,
    /// Atomics and reductions on memory.
    Atomic,
    /// Barriers, fences, waits.
    Sync,
    /// Shuffles, votes and other exchanges in a warp.
    Warp,
    /// Matrix multiplication.
    Tensor,
}

impl Class {
    /// All classes in the order of [`Counters::instructions`].
    pub const ALL: [Class; 9] = [
        Class::Integer,
        Class::Float,
        Class::Convert,
        Class::Control,
        Class::Memory,
        Class::Atomic,
        Class::Sync,
        Class::Warp,
        Class::Tensor,
    ];
}

/// Counts of one launch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Executed instructions of warps, by class in the order of [`Class::ALL`].
    pub instructions: [u64; 9],
    /// The same counted per active lane.
    pub lane_instructions: [u64; 9],
    /// Bytes read from global memory by lanes.
    pub global_read: u64,
    /// Bytes written to global memory by lanes.
    pub global_written: u64,
    /// Bytes read from shared memory.
    pub shared_read: u64,
    /// Bytes written to shared memory.
    pub shared_written: u64,
    /// Bytes read and written in local memory.
    pub local: u64,
    /// Sectors of 32 bytes that global accesses of warps touched.
    pub sectors: u64,
    /// Sectors that the same bytes would have needed, packed.
    pub ideal_sectors: u64,
    /// Passes over the banks that shared accesses needed beyond the first.
    pub bank_conflicts: u64,
    /// Branches on which lanes of a warp parted.
    pub divergent_branches: u64,
    /// Multiplications and additions of tensor instructions.
    pub tensor_operations: u64,
}

impl Counters {
    /// Instructions of all classes, counted per lane.
    pub fn lanes(&self) -> u64 {
        self.lane_instructions.iter().sum()
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        for (sum, more) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += more;
        }
        for (sum, more) in self.lane_instructions.iter_mut().zip(other.lane_instructions) {
            *sum += more;
        }
        self.global_read += other.global_read;
        self.global_written += other.global_written;
        self.shared_read += other.shared_read;
        self.shared_written += other.shared_written;
        self.local += other.local;
        self.sectors += other.sectors;
        self.ideal_sectors += other.ideal_sectors;
        self.bank_conflicts += other.bank_conflicts;
        self.divergent_branches += other.divergent_branches;
        self.tensor_operations += other.tensor_operations;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<20} {:>14} {:>16}", "class", "warp", "lane")?;
        for (index, class) in Class::ALL.iter().enumerate().filter(|(index, _)| self.instructions[*index] > 0) {
            let name = format!("{class:?}").to_lowercase();
            writeln!(f, "{name:<20} {:>14} {:>16}", self.instructions[index], self.lane_instructions[index])?;
        }
        for (name, value) in [
            ("global bytes read", self.global_read),
            ("global bytes written", self.global_written),
            ("shared bytes read", self.shared_read),
            ("shared bytes written", self.shared_written),
            ("local bytes", self.local),
            ("sectors", self.sectors),
            ("ideal sectors", self.ideal_sectors),
            ("bank conflicts", self.bank_conflicts),
            ("divergent branches", self.divergent_branches),
            ("tensor operations", self.tensor_operations),
        ] {
            writeln!(f, "{name:<20} {value:>14}")?;
        }
        Ok(())
    }
}
