//! Byte-pair merging: the merge of lowest rank first, the leftmost among equals, until none applies.
//!
//! What a pair becomes is a function: of two tokens where merges are listed, of the text that they span where they are
//! not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use lathe_plan::tokenizer::Rule;

/// A token in the doubly linked list of its piece.
#[derive(Clone, Copy, Debug)]
struct Node {
    /// The token, or [`NONE`] once it was merged into the one before.
    token: u32,
    /// Where its text starts.
    start: u32,
    before: u32,
    after: u32,
}

/// No token, no node.
const NONE: u32 = u32::MAX;
/// In place of a token: text that is none yet, and may become one together with its neighbours.
pub const UNKNOWN: u32 = NONE - 1;

/// The working memory of [`Self::merge`], kept from piece to piece.
#[derive(Debug, Default)]
pub struct Merger {
    nodes: Vec<Node>,
    /// Where the text of the last node ends.
    end: u32,
    /// Rank and left node of each pair that a merge applies to, or did when it was entered.
    candidates: BinaryHeap<Reverse<(u32, u32)>>,
}

impl Merger {
    /// Merges tokens, each given with the length of its text; `rule` is told two neighbours and the span of their text.
    /// Takes `n log n` steps for `n` tokens. What remains comes out of [`Self::tokens`].
    pub fn merge(
        &mut self,
        tokens: impl Iterator<Item = (u32, usize)>,
        rule: impl Fn(u32, u32, Range<usize>) -> Option<Rule>,
    ) {
        self.nodes.clear();
        self.end = 0;
        for (at, (token, length)) in (0..UNKNOWN).zip(tokens) {
            if let Some(last) = self.nodes.last_mut() {
                last.after = at;
            }
            let before = at.checked_sub(1).unwrap_or(NONE);
            self.nodes.push(Node { token, start: self.end, before, after: NONE });
            self.end += length as u32;
        }
        for at in 0..self.nodes.len() as u32 {
            self.enter(&rule, at);
        }
        while let Some(Reverse((rank, at))) = self.candidates.pop() {
            // An entry is out of date when either side was merged meanwhile, and then another rank or none applies.
            match self.rule_at(&rule, at) {
                Some(found) if found.rank == rank => self.apply(&rule, at, found.merged),
                _ => {}
            }
        }
    }

    /// The tokens that remain, each with the span of its text.
    pub fn tokens(&self) -> impl Iterator<Item = (u32, Range<usize>)> {
        let remaining = self.nodes.iter().filter(|node| node.token != NONE);
        remaining.map(|node| (node.token, node.start as usize..self.end_of(node)))
    }

    fn end_of(&self, node: &Node) -> usize {
        self.nodes.get(node.after as usize).map_or(self.end, |after| after.start) as usize
    }

    /// The rule for the pair that starts at a node.
    fn rule_at(&self, rule: &impl Fn(u32, u32, Range<usize>) -> Option<Rule>, at: u32) -> Option<Rule> {
        let node = self.nodes[at as usize];
        let after = self.nodes.get(node.after as usize)?;
        rule(node.token, after.token, node.start as usize..self.end_of(after))
    }

    fn enter(&mut self, rule: &impl Fn(u32, u32, Range<usize>) -> Option<Rule>, at: u32) {
        if let Some(rule) = self.rule_at(rule, at) {
            self.candidates.push(Reverse((rule.rank, at)));
        }
    }

    /// Puts `merged` in place of the pair that starts at `at`.
    fn apply(&mut self, rule: &impl Fn(u32, u32, Range<usize>) -> Option<Rule>, at: u32, merged: u32) {
        let Node { start, before, after: gone, .. } = self.nodes[at as usize];
        let after = self.nodes[gone as usize].after;
        self.nodes[gone as usize] = Node { token: NONE, start, before: NONE, after: NONE };
        self.nodes[at as usize] = Node { token: merged, start, before, after };
        if after != NONE {
            self.nodes[after as usize].before = at;
        }
        self.enter(rule, at);
        if before != NONE {
            self.enter(rule, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use lathe_plan::Merge;

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
            let mut merger = Merger::default();
            merger.merge(tokens.iter().map(|token| (*token, 1)), |left, right, _| {
                let rank = merges.iter().position(|merge| (merge.left, merge.right) == (left, right))?;
                Some(Rule { rank: rank as u32, merged: merges[rank].merged })
            });
            let out: Vec<u32> = merger.tokens().map(|(token, _)| token).collect();
            merged_somewhere += usize::from(out.len() < tokens.len());
            assert_eq!(out, by_definition(&merges, tokens.clone()), "{merges:?} on {tokens:?}");
        }
        assert!(merged_somewhere > 200, "the rules hardly ever applied: {merged_somewhere}");
    }
}
