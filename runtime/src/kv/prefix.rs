//! What a page holds, named by the tokens that led to it.
//!
//! A [`Link`] stands for one full page: its tokens, and the link of the page before. Its name is a keyed BLAKE3 hash of
//! that page's name and its own tokens, so equal names mean equal tokens all the way back to the root. The root is
//! different for each owner and salt, so nobody can learn by a faster answer what somebody else has asked. A name is only
//! a hint all the same: [`Link::is_same`] compares the tokens themselves before a page is used again.

use std::sync::Arc;

/// Where a chain of pages begins: chains of different roots never meet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Root {
    /// Whose pages these are, for the quota.
    pub owner: u64,
    /// The first name of the chain.
    pub name: [u8; 32],
}

impl Root {
    /// The root of an owner, named by any text (an API key), and a salt of a request. The secret is the process's own.
    pub fn new(secret: &[u8; 32], owner: &str, salt: &str) -> Root {
        let owner = blake3::keyed_hash(secret, owner.as_bytes());
        let name = blake3::keyed_hash(owner.as_bytes(), salt.as_bytes());
        let number = owner.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        Root { owner: number, name: *name.as_bytes() }
    }
}

/// A full page of tokens and everything before it.
#[derive(Debug)]
pub struct Link {
    name: [u8; 32],
    root: Root,
    tokens: Box<[u32]>, // [page_tokens]
    parent: Option<Arc<Link>>,
}

impl Link {
    /// The page of `tokens` after `parent`. Names keep `bits` bits, all of them but in tests of what collisions do.
    pub(super) fn new(secret: &[u8; 32], bits: u32, root: Root, parent: Option<&Arc<Link>>, tokens: &[u32]) -> Link {
        let mut hasher = blake3::Hasher::new_keyed(secret);
        hasher.update(parent.map_or(&root.name, |parent| &parent.name));
        for token in tokens {
            hasher.update(&token.to_le_bytes());
        }
        let mut name = *hasher.finalize().as_bytes();
        for (index, byte) in name.iter_mut().enumerate() {
            let kept = bits.saturating_sub(8 * index as u32).min(8);
            *byte &= !(0xff_u32 >> kept) as u8;
        }
        Link { name, root, tokens: tokens.into(), parent: parent.cloned() }
    }

    /// Its name in the index.
    pub(super) fn name(&self) -> [u8; 32] {
        self.name
    }

    /// Who computed it.
    pub(super) fn owner(&self) -> u64 {
        self.root.owner
    }

    /// The tokens of this page alone.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// The page before.
    pub(super) fn parent(&self) -> Option<&Arc<Link>> {
        self.parent.as_ref()
    }

    /// Whether two links stand for the same tokens from the same root.
    pub fn is_same(self: &Arc<Link>, other: &Arc<Link>) -> bool {
        let (mut a, mut b) = (self, other);
        loop {
            if Arc::ptr_eq(a, b) {
                return true;
            }
            if !a.is_same_page(b) {
                return false;
            }
            match (&a.parent, &b.parent) {
                (None, None) => return true,
                (Some(x), Some(y)) => (a, b) = (x, y),
                _ => return false,
            }
        }
    }

    /// Whether two links agree in all but what came before.
    pub(super) fn is_same_page(&self, other: &Link) -> bool {
        self.root == other.root && self.tokens == other.tokens
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // One by one: a chain of a long context would recurse too deep.
        let mut next = self.parent.take();
        while let Some(mut link) = next.and_then(Arc::into_inner) {
            next = link.parent.take();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: [u8; 32] = [7; 32];

    fn chain(root: Root, pages: &[&[u32]]) -> Arc<Link> {
        let mut last: Option<Arc<Link>> = None;
        for page in pages {
            last = Some(Arc::new(Link::new(&SECRET, 256, root, last.as_ref(), page)));
        }
        last.expect("a page")
    }

    #[test]
    fn names_tell_tokens_places_owners_and_salts_apart() {
        let root = Root::new(&SECRET, "key", "");
        let link = chain(root, &[&[1, 2], &[3, 4]]);
        assert_eq!(link.name(), chain(root, &[&[1, 2], &[3, 4]]).name());
        let others = [
            chain(root, &[&[1, 2], &[3, 5]]),
            chain(root, &[&[1, 9], &[3, 4]]),
            chain(root, &[&[3, 4]]),
            chain(Root::new(&SECRET, "other", ""), &[&[1, 2], &[3, 4]]),
            chain(Root::new(&SECRET, "key", "salt"), &[&[1, 2], &[3, 4]]),
            chain(Root::new(&[8; 32], "key", ""), &[&[1, 2], &[3, 4]]),
        ];
        for other in others {
            assert_ne!(link.name(), other.name());
            assert!(!link.is_same(&other));
        }
    }

    #[test]
    fn short_names_collide_and_tokens_tell() {
        let root = Root::default();
        let names = |bits| Arc::new(Link::new(&SECRET, bits, root, None, &[1]));
        let other = |bits| Arc::new(Link::new(&SECRET, bits, root, None, &[2]));
        assert_eq!(names(0).name(), other(0).name());
        assert!(!names(0).is_same(&other(0)));
        assert_eq!(names(12).name()[2..], [0; 30]);
        assert_eq!(names(12).name()[1] & 0x0f, 0);
    }

    #[test]
    fn a_very_long_chain_is_dropped_without_recursion() {
        let mut last = None;
        for token in 0..200_000 {
            last = Some(Arc::new(Link::new(&SECRET, 256, Root::default(), last.as_ref(), &[token])));
        }
        drop(last);
    }
}
