//! Tokens by their text.

use lathe_plan::{TokenKind, TokenizerTables};

/// Finds ordinary tokens by their bytes: a table of ids by hash with open addressing, at most half full. The texts stay
/// in the tables, so that building it is one pass over them and allocates once.
#[derive(Debug)]
pub struct Vocabulary {
    /// Ids, or [`FREE`]; a power of two of them.
    slots: Vec<u32>,
    /// Bytes of the longest token in it.
    longest: usize,
}

const FREE: u32 = u32::MAX;

impl Vocabulary {
    /// Enters every normal token; the first of two with one text wins.
    pub fn new(tables: &TokenizerTables) -> Vocabulary {
        let slots = vec![FREE; (2 * tables.len()).next_power_of_two().max(2)];
        let mut vocabulary = Vocabulary { slots, longest: 0 };
        for (id, kind) in (0..).zip(&tables.kinds) {
            let Some(text) = tables.token(id).filter(|text| *kind == TokenKind::Normal && !text.is_empty()) else {
                continue;
            };
            let slot = vocabulary.slot(tables, text);
            if vocabulary.slots[slot] == FREE {
                vocabulary.slots[slot] = id;
            }
            vocabulary.longest = vocabulary.longest.max(text.len());
        }
        vocabulary
    }

    /// The token with this text, in the tables that this was made of.
    pub fn find(&self, tables: &TokenizerTables, text: &[u8]) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        Some(self.slots[self.slot(tables, text)]).filter(|id| *id != FREE)
    }

    /// The slot that holds the token with this text, or the free one where it belongs.
    fn slot(&self, tables: &TokenizerTables, text: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = hash(text) as usize & mask;
        while self.slots[slot] != FREE && tables.token(self.slots[slot]) != Some(text) {
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// Folds eight bytes at a time into a product. The texts in the table come from the plan and the table is at most half
/// full; a text made to collide costs its author a few more steps per lookup.
fn hash(text: &[u8]) -> u64 {
    text.chunks(8).fold(text.len() as u64, |state, chunk| {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        let product = u128::from(state ^ u64::from_le_bytes(word)) * 0x9e37_79b9_7f4a_7c15;
        (product >> 64) as u64 ^ product as u64
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_found_and_no_other() {
        let mut tables = TokenizerTables::default();
        for number in 0..5000u32 {
            tables.push(format!("token {}", number * 3).as_bytes(), TokenKind::Normal);
        }
        tables.push(b"token 1", TokenKind::Control);
        tables.push(b"token 3", TokenKind::Normal);
        let vocabulary = Vocabulary::new(&tables);
        for number in 0..15_000u32 {
            let found = vocabulary.find(&tables, format!("token {number}").as_bytes());
            assert_eq!(found, number.is_multiple_of(3).then_some(number / 3), "{number}");
        }
        assert_eq!(vocabulary.find(&tables, b""), None);
        assert_eq!(vocabulary.find(&tables, &[b'x'; 100]), None);
    }
}
