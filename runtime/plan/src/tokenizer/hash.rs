//! Tables with open addressing, as they lie in a plan: a power of two of slots, each an index or [`FREE`].
//!
//! The keys come from the plan. Nobody can choose them to collide without making the plan, and whoever made it gains but
//! a few more steps per lookup. A table is at most two thirds full when it is made, and one slot at least is free.

/// In place of an index.
pub const FREE: u32 = u32::MAX;

/// Folds eight bytes at a time into a product.
pub fn of_text(text: &[u8]) -> u64 {
    text.chunks(8).fold(text.len() as u64, |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        fold(state ^ u64::from_le_bytes(word))
    })
}

/// The hash of two neighbours.
pub fn of_pair(left: u32, right: u32) -> u64 {
    fold(u64::from(left) << 32 | u64::from(right))
}

/// The position is taken from the low bits, and a product is good in the high ones: both are folded into one.
fn fold(key: u64) -> u64 {
    let product = u128::from(key) * 0x9e37_79b9_7f4a_7c15;
    (product >> 64) as u64 ^ product as u64
}

/// The slots for these keys: index and hash of each. Of keys that `are_same` the first stays.
pub fn table(keys: &[(u32, u64)], are_same: impl Fn(u32, u32) -> bool) -> Vec<u32> {
    let mut slots = vec![FREE; (keys.len() + keys.len() / 2 + 1).next_power_of_two()];
    let mask = slots.len() - 1;
    for (index, hash) in keys {
        let mut slot = *hash as usize & mask;
        while slots[slot] != FREE && !are_same(slots[slot], *index) {
            slot = (slot + 1) & mask;
        }
        if slots[slot] == FREE {
            slots[slot] = *index;
        }
    }
    slots
}
