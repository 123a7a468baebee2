//! Trees: several ways on from one place, verified in one step.
//!
//! The guesses of an answer are a chain, the trunk, and branches: a branch says what may come instead of one of the trunk's
//! guesses, and what behind that. In a step a branch is a sequence of its own. It shares the full pages of its answer, has
//! a copy of the last, partial one, and computes the answer's last token and the trunk before it once more. So each of its
//! rows sees just the keys and values that it would see in plain decoding, at their places; nothing is masked, and no bit
//! differs. Where a branch is right its pages become the answer's.

use super::{Guess, worth::Odds};

/// Another way on from a place.
#[derive(Clone, Debug, PartialEq)]
pub struct Branch {
    /// Guesses of the trunk before it, of which there is one more, that it stands beside.
    pub from: usize,
    /// Its guesses, the next token first; at least one.
    pub guesses: Vec<Guess>,
}

/// A guess of a tree.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Node {
    /// The branch that it lies on; `None` for the trunk.
    pub branch: Option<usize>,
    /// Guesses before it on the trunk or the branch.
    pub depth: usize,
    /// All guesses before it.
    pub place: usize,
    /// How likely it is right, and so are all before it.
    pub chance: f64,
    /// Tokens that it adds to a step.
    pub tokens: usize,
}

/// The `most` likeliest guesses of a tree, each behind those that it needs.
pub fn likeliest(trunk: &[Guess], branches: &[Branch], odds: Odds<'_>, most: usize) -> Vec<Node> {
    let mut nodes = Vec::with_capacity(trunk.len());
    // For each place the chance that all guesses before it are right, and of those that none at the place is.
    let mut before = Vec::with_capacity(trunk.len());
    let mut chance = 1.0;
    for (depth, guess) in trunk.iter().enumerate() {
        let odds = odds.of(guess);
        before.push(chance * (1.0 - odds));
        chance *= odds;
        nodes.push(Node { branch: None, depth, place: depth, chance, tokens: 1 });
    }
    for (index, Branch { from, guesses }) in branches.iter().enumerate() {
        let (Some(open), Some(first)) = (before.get_mut(*from), guesses.first()) else { continue };
        let mut chance = *open;
        *open *= 1.0 - odds.of(first);
        for (depth, guess) in guesses.iter().enumerate() {
            chance *= odds.of(guess);
            let tokens = if depth == 0 { from + 2 } else { 1 };
            nodes.push(Node { branch: Some(index), depth, place: from + depth, chance, tokens });
        }
    }
    // Of equal ones the earlier places first, and of those the trunk's: the sort is stable.
    nodes.sort_by(|a, b| b.chance.total_cmp(&a.chance).then(a.place.cmp(&b.place)));
    nodes.truncate(most);
    nodes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speculate::worth::Record;

    fn guess(class: usize, chance: f32) -> Guess {
        Guess { token: 0, class, chance }
    }

    #[test]
    fn the_likeliest_guesses_are_taken_each_behind_those_before_it() {
        let nothing = Record::default();
        let odds = Odds { own: &nothing, all: &nothing };
        let trunk = [guess(0, 0.5), guess(1, 0.5), guess(2, 0.5)];
        let branches = [
            Branch { from: 0, guesses: vec![guess(3, 0.5), guess(4, 1.0)] },
            Branch { from: 0, guesses: vec![guess(5, 0.25)] },
            Branch { from: 1, guesses: vec![guess(6, 0.75)] },
            Branch { from: 3, guesses: vec![guess(7, 1.0)] }, // beside nothing
        ];
        let found = likeliest(&trunk, &branches, odds, 9);
        let chances: Vec<f64> = found.iter().map(|node| node.chance).collect();
        // The second branch counts where trunk and first branch are wrong, a quarter of the time.
        assert_eq!(chances, [0.5, 0.25, 0.25, 0.25, 0.1875, 0.125, 0.0625]);
        let places: Vec<_> = found.iter().map(|node| (node.branch, node.depth, node.place, node.tokens)).collect();
        let expected = [
            (None, 0, 0, 1),
            (Some(0), 0, 0, 2),
            (None, 1, 1, 1),
            (Some(0), 1, 1, 1),
            (Some(2), 0, 1, 3),
            (None, 2, 2, 1),
            (Some(1), 0, 0, 2),
        ];
        assert_eq!(places, expected);
        assert_eq!(likeliest(&trunk, &branches, odds, 2), found[..2]);
        assert_eq!(likeliest(&trunk, &[], odds, 9).len(), 3);
    }
}
