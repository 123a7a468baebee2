//! What a kernel can do wrong, and where it did.

use std::fmt;

/// The kind of a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FaultKind {
    /// An access outside of every allocation, the shared memory, the local frame or the parameters.
    OutOfBounds,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// A read of memory that nothing has written.
    Uninitialized,
    /// An access to bytes that an asynchronous copy still writes.
    AsyncCopy,
    /// A collective instruction that threads of its warp do not reach together.
    Divergent,
    /// A barrier that is used with different counts, or with one that is no multiple of the warp's size.
    BarrierCount,
    /// Two threads of a CTA touch the same shared memory, at least one writes, and no barrier is between.
    SharedRace,
    /// Two CTAs touch the same global memory, at least one writes, and nothing orders them.
    GlobalRace,
    /// Nothing can go on: all wait at barriers, or read the same values in loops.
    Deadlock,
    /// The limit of executed instructions was reached.
    StepLimit,
    /// A `trap`, a failed device assertion, or a jump without a target.
    Trap,
    /// The launch itself is not possible: sizes, arguments, shared memory.
    Launch,
}

/// A fault: what, where and who.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Fault {
    /// What went wrong.
    pub kind: FaultKind,
    /// The kernel.
    pub kernel: String,
    /// Line of the instruction in the PTX text; 0 where no single one is to blame.
    pub line: u32,
    /// The CTA's index in the grid.
    pub cta: [u32; 3],
    /// The warp in its CTA.
    pub warp: u32,
    /// The lanes concerned, as a mask.
    pub lanes: u32,
    /// What was expected and what was found.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.cta;
        write!(f, "{:?} in kernel {}", self.kind, self.kernel)?;
        if self.line != 0 {
            write!(f, ", PTX line {}, CTA ({x}, {y}, {z}), warp {}, lanes {:#010x}", self.line, self.warp, self.lanes)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// A fault as the executing code sees it, before kernel, CTA, warp and line are known.
#[derive(Debug)]
pub(crate) struct Wrong {
    pub(crate) kind: FaultKind,
    pub(crate) lanes: u32,
    pub(crate) message: String,
}

impl Wrong {
    pub(crate) fn new(kind: FaultKind, lane: usize, message: impl Into<String>) -> Wrong {
        Wrong { kind, lanes: 1 << lane, message: message.into() }
    }
}
