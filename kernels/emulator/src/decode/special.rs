//! Special registers by their names.

use crate::exec::op::Special;

/// The special register of a name such as `%tid.x`.
pub(super) fn parse(name: &str) -> Option<Special> {
    let axis = |name: &str| ["x", "y", "z"].iter().position(|&axis| axis == name).map(|axis| axis as u8);
    if let Some((base, dim)) = name.split_once('.') {
        let axis = axis(dim)?;
        return Some(match base {
            "%tid" => Special::Tid(axis),
            "%ntid" => Special::Ntid(axis),
            "%ctaid" => Special::Ctaid(axis),
            "%nctaid" => Special::Nctaid(axis),
            _ => return None,
        });
    }
    Some(match name {
        "%laneid" => Special::LaneId,
        "%warpid" => Special::WarpId,
        "%nwarpid" => Special::NWarpId,
        "WARP_SZ" => Special::WarpSize,
        "%smid" => Special::SmId,
        "%nsmid" => Special::NSmId,
        "%gridid" => Special::GridId,
        "%lanemask_eq" => Special::MaskEq,
        "%lanemask_le" => Special::MaskLe,
        "%lanemask_lt" => Special::MaskLt,
        "%lanemask_ge" => Special::MaskGe,
        "%lanemask_gt" => Special::MaskGt,
        "%dynamic_smem_size" => Special::DynamicShared,
        "%total_smem_size" => Special::TotalShared,
        "%envreg1" | "%envreg2" => Special::Zero,
        _ => return None,
    })
}
