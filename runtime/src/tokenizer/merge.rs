//! Byte-pair merging: the merge of lowest rank first, the leftmost among equals, until none applies.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::hash::{BuildHasherDefault, Hasher};

use lathe_plan::Merge;

/// What a pair becomes, and how early.
#[derive(Clone, Copy, Debug)]
struct Rule {
    rank: u32,
    merged: u32,
}

/// All merges by their pair.
#[derive(Debug)]
pub struct Merges {
    rules: HashMap<u64, Rule, BuildHasherDefault<PairHasher>>,
}

impl Merges {
    /// Merges in rank order; the first of two rules for one pair wins.
    pub fn new(merges: &[Merge]) -> Merges {
        let mut rules = HashMap::with_capacity_and_hasher(merges.len(), BuildHasherDefault::default());
        for (rank, merge) in (0..).zip(merges) {
            rules.entry(pair(merge.left, merge.right)).or_insert(Rule { rank, merged: merge.merged });
        }
        Merges { rules }
    }

    fn rule(&self, left: u32, right: u32) -> Option<Rule> {
        self.rules.get(&pair(left, right)).copied()
    }
}

fn pair(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Spreads a pair by one multiplication. The keys come from the plan, so nobody can choose them to collide, and the
/// standard hasher would take most of the time of loading and merging.
#[derive(Debug, Default)]
struct PairHasher(u64);

impl Hasher for PairHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, key: u64) {
        // The table takes its position from the low bits and its tag from the high ones, a product is good in the high
        // ones only: fold it.
        let product = u128::from(self.0 ^ key) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// A token in the doubly linked list of its piece.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The token, or [`NONE`] once it was merged into the one before.
    token: u32,
    before: u32,
    after: u32,
}

/// No token, no node.
const NONE: u32 = u32::MAX;

/// The working memory of [`Self::merge`], kept from piece to piece.
#[derive(Debug, Default)]
pub struct Merger {
    nodes: Vec<Node>,
    /// Rank and left node of each pair that a merge applies to, or did when it was entered.
    candidates: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Merger {
    /// Merges the tokens of one piece and appends what remains to `out`. Takes `n log n` steps for `n` tokens.
    pub fn merge(&mut self, merges: &Merges, tokens: impl Iterator<Item = u32>, out: &mut Vec<u32>) {
        self.nodes.clear();
        for (at, token) in (0..NONE).zip(tokens) {
            if let Some(last) = self.nodes.last_mut() {
                last.after = at;
            }
            self.nodes.push(Node { token, before: at.checked_sub(1).unwrap_or(NONE), after: NONE });
        }
        for at in 0..self.nodes.len() as u32 {
            self.enter(merges, at);
        }
        while let Some(Reverse((rank, at))) = self.candidates.pop() {
            // An entry is out of date when either side was merged meanwhile, and then another rank or none applies.
            match self.rule_at(merges, at) {
                Some(rule) if rule.rank == rank => self.apply(merges, at, rule.merged),
                _ => {}
            }
        }
        out.extend(self.nodes.iter().map(|node| node.token).filter(|token| *token != NONE));
    }

    /// The rule for the pair that starts at a node.
    fn rule_at(&self, merges: &Merges, at: u32) -> Option<Rule> {
        let node = self.nodes[at as usize];
        let after = self.nodes.get(node.after as usize)?;
        merges.rule(node.token, after.token)
    }

    fn enter(&mut self, merges: &Merges, at: u32) {
        if let Some(rule) = self.rule_at(merges, at) {
            self.candidates.push(Reverse((rule.rank, at)));
        }
    }

    /// Puts `merged` in place of the pair that starts at `at`.
    fn apply(&mut self, merges: &Merges, at: u32, merged: u32) {
        let Node { before, after: gone, .. } = self.nodes[at as usize];
        let after = self.nodes[gone as usize].after;
        self.nodes[gone as usize] = Node { token: NONE, before: NONE, after: NONE };
        self.nodes[at as usize] = Node { token: merged, before, after };
        if after != NONE {
            self.nodes[after as usize].before = at;
        }
        self.enter(merges, at);
        if before != NONE {
            self.enter(merges, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, in quadratic time.
    fn by_definition(merges: &[Merge], mut tokens: Vec<u32>) -> Vec<u32> {
        for _ in 0..tokens.len() {
            let rank_of = |at: usize| {
                merges
                    .iter()
                    .position(|merge| tokens.get(at) == Some(&merge.left) && tokens.get(at + 1) == Some(&merge.right))
            };
            let Some((rank, at)) = (0..tokens.len()).filter_map(|at| rank_of(at).map(|rank| (rank, at))).min() else {
                break;
            };
            tokens.splice(at..at + 2, [merges[rank].merged]);
        }
        tokens
    }

    #[test]
    fn agrees_with_the_definition_on_random_rules() {
        // A linear congruential generator: few symbols, so that rules chain and overlap often.
        let mut state = 1u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % below) as u32
        };
        let mut merged_somewhere = 0;
        for _ in 0..300 {
            let merges: Vec<Merge> =
                (0..12).map(|_| Merge { left: random(8), right: random(8), merged: random(8) }).collect();
            let tokens: Vec<u32> = (0..random(40)).map(|_| random(8)).collect();
            let mut out = Vec::new();
            Merger::default().merge(&Merges::new(&merges), tokens.iter().copied(), &mut out);
            merged_somewhere += usize::from(out.len() < tokens.len());
            assert_eq!(out, by_definition(&merges, tokens.clone()), "{merges:?} on {tokens:?}");
        }
        assert!(merged_somewhere > 200, "the rules hardly ever applied: {merged_somewhere}");
    }
}
