//! The `sm_90` tier: barriers in memory, bulk and tensor copies, `wgmma`, clusters. None of it is emulated yet; this is where
//! its instructions are decoded once they are. What they need of the executor: copies that complete on a barrier instead of
//! a group ([`crate::exec::copy`]), an operand of `mma` that is a description of shared memory ([`crate::exec::mma`]), and
//! shared memory of other CTAs ([`crate::exec::shared`]).

use super::{Decoder, Mods, Result};
use crate::ptx::PtxError;
use crate::ptx::tree::Instruction;

/// Opcodes, each with the modifiers that make it one of the tier.
const TIER: &[(&str, &[&str])] = &[
    ("mbarrier", &[]),
    ("wgmma", &[]),
    ("stmatrix", &[]),
    ("mapa", &[]),
    ("getctarank", &[]),
    ("tensormap", &[]),
    ("multimem", &[]),
    ("tcgen05", &[]),
    ("clusterlaunchcontrol", &[]),
    ("cp", &["bulk", "mbarrier", "reduce"]),
    ("barrier", &["cluster"]),
    ("red", &["async"]),
    ("st", &["async", "bulk"]),
    ("fence", &["mbarrier_init", "proxy"]),
];

impl Decoder<'_> {
    /// Refuses the instructions of the tier by name.
    pub(super) fn hopper(name: &str, mods: &Mods<'_>, i: &Instruction) -> Result<()> {
        let is_listed = |(opcode, marks): &&(&str, &[&str])| {
            *opcode == name && (marks.is_empty() || mods.list.iter().any(|found| marks.contains(found)))
        };
        if TIER.iter().any(|entry| is_listed(&entry)) {
            let message = format!(
                "`{}` is not emulated yet: it belongs to what sm_90 and later chips add to the instructions of sm_80",
                i.opcode
            );
            return Err(PtxError::new(i.at, message));
        }
        Ok(())
    }
}
