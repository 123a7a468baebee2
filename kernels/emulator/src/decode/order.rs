//! The order of blocks. Lanes of a warp run from the lowest position up, so two groups that parted meet again at the
//! first position that both reach. That is their reconvergence point when every block lies after all that lead to it,
//! and each loop lies in one piece: a topological order of the strongly connected parts, applied again inside each of
//! them without the edges back to its head.

use crate::counters::Class;
use crate::exec::op::{Inst, Op};

/// How deep loops may be nested before their blocks stay as written.
const MOST_NESTING: usize = 200;

struct Block {
    start: usize,
    end: usize,
    next: Vec<usize>,
    /// The block that control falls into.
    falls: Option<usize>,
}

/// Rearranges code; targets are positions before and after.
pub(super) fn order(code: &mut Vec<Inst>) {
    let blocks = blocks(code);
    let nodes: Vec<usize> = (0..blocks.len()).collect();
    let mut placed = Vec::with_capacity(blocks.len());
    arrange(&mut Graph::new(&blocks), nodes, 0, None, &mut placed);
    let mut out: Vec<Inst> = Vec::with_capacity(code.len());
    let mut starts = vec![0u32; blocks.len()];
    for (index, &block) in placed.iter().enumerate() {
        starts[block] = out.len() as u32;
        let Block { start, end, falls, .. } = blocks[block];
        out.extend_from_slice(&code[start..end]);
        if let Some(falls) = falls.filter(|falls| placed.get(index + 1) != Some(falls)) {
            let line = code[end - 1].line;
            let target = blocks[falls].start as u32;
            out.push(Inst { op: Op::Bra { target }, guard: None, class: Class::Control, line });
        }
    }
    let block_at: std::collections::HashMap<usize, usize> =
        blocks.iter().enumerate().map(|(index, block)| (block.start, index)).collect();
    let moved = |target: u32| block_at.get(&(target as usize)).map_or(target, |&block| starts[block]);
    for inst in &mut out {
        match &mut inst.op {
            Op::Bra { target } => *target = moved(*target),
            Op::Brx { targets, .. } => targets.iter_mut().for_each(|target| *target = moved(*target)),
            _ => {}
        }
    }
    *code = out;
}

fn blocks(code: &[Inst]) -> Vec<Block> {
    let mut is_start = vec![false; code.len() + 1];
    is_start[0] = true;
    for (index, inst) in code.iter().enumerate() {
        match &inst.op {
            Op::Bra { target } => is_start[*target as usize] = true,
            Op::Brx { targets, .. } => targets.iter().for_each(|&target| is_start[target as usize] = true),
            Op::Exit => {}
            _ => continue,
        }
        is_start[index + 1] = true;
    }
    let starts: Vec<usize> = (0..code.len()).filter(|&index| is_start[index]).collect();
    let block_of = |position: usize| starts.binary_search(&position).ok();
    let end_of = |index: usize| starts.get(index + 1).copied().unwrap_or(code.len());
    (0..starts.len())
        .map(|index| {
            let end = end_of(index);
            let last = &code[end - 1];
            let conditional = last.guard.is_some();
            let (mut next, falls) = match &last.op {
                Op::Bra { target } => (block_of(*target as usize).into_iter().collect(), conditional),
                Op::Brx { targets, .. } => {
                    (targets.iter().filter_map(|&target| block_of(target as usize)).collect(), conditional)
                }
                Op::Exit => (vec![], conditional),
                _ => (vec![], true),
            };
            let falls = (falls && index + 1 < starts.len()).then_some(index + 1);
            next.extend(falls);
            Block { start: starts[index], end, next, falls }
        })
        .collect()
}

const NONE: usize = usize::MAX;

/// The blocks with what a search among some of them needs, which is made once so that a small loop costs little.
struct Graph<'a> {
    blocks: &'a [Block],
    /// Blocks that lead to each.
    before: Vec<Vec<usize>>,
    /// The search in which each block is looked for, and its numbers there.
    inside: Vec<usize>,
    number: Vec<usize>,
    low: Vec<usize>,
    on_stack: Vec<bool>,
    searches: usize,
}

impl<'a> Graph<'a> {
    fn new(blocks: &'a [Block]) -> Graph<'a> {
        let count = blocks.len();
        let mut before = vec![vec![]; count];
        for (from, block) in blocks.iter().enumerate() {
            block.next.iter().for_each(|&to: &usize| before[to].push(from));
        }
        let (inside, number, low) = (vec![0; count], vec![NONE; count], vec![0; count]);
        Graph { blocks, before, inside, number, low, on_stack: vec![false; count], searches: 0 }
    }
}

/// Appends the nodes in order. Edges to `head` are not followed: they close the loop that is being arranged.
fn arrange(graph: &mut Graph<'_>, nodes: Vec<usize>, depth: usize, head: Option<usize>, out: &mut Vec<usize>) {
    if nodes.len() <= 1 || depth > MOST_NESTING {
        out.extend(nodes);
        return;
    }
    for mut part in components(graph, &nodes, head) {
        if part.len() == 1 {
            out.push(part[0]);
            continue;
        }
        // The head is where the loop is entered; the lowest block in source order is one.
        part.sort_unstable();
        let is_outside = |from: &usize| part.binary_search(from).is_err();
        let entered = part.iter().copied().find(|&node| graph.before[node].iter().any(is_outside));
        let own = entered.unwrap_or(part[0]);
        part.retain(|&node| node != own);
        part.insert(0, own);
        arrange(graph, part, depth + 1, Some(own), out);
    }
}

/// Strongly connected parts of some nodes, each before those that it leads to (Tarjan's algorithm with its own stack).
/// What the first node reaches comes first; what it does not reach is never run, or by a jump back only.
fn components(graph: &mut Graph<'_>, nodes: &[usize], head: Option<usize>) -> Vec<Vec<usize>> {
    graph.searches += 1;
    let Graph { blocks, inside, number, low, on_stack, searches, .. } = graph;
    for &node in nodes {
        (inside[node], number[node]) = (*searches, NONE);
    }
    let mut open = Vec::new();
    let (mut count, mut out) = (0, Vec::<Vec<usize>>::new());
    for &root in nodes {
        if number[root] != NONE {
            continue;
        }
        let first = out.len();
        let mut work = vec![(root, 0)];
        while let Some(&mut (node, ref mut edge)) = work.last_mut() {
            if *edge == 0 {
                (number[node], low[node]) = (count, count);
                count += 1;
                open.push(node);
                on_stack[node] = true;
            }
            // The way taken by a branch is visited first, so that the other one precedes it in the reversed order.
            let next = blocks[node].next.get(*edge).copied();
            *edge += 1;
            match next {
                Some(next) if inside[next] != *searches || Some(next) == head => {}
                Some(next) if number[next] == NONE => work.push((next, 0)),
                Some(next) => {
                    if on_stack[next] {
                        low[node] = low[node].min(number[next]);
                    }
                }
                None => {
                    work.pop();
                    if let Some(&(parent, _)) = work.last() {
                        low[parent] = low[parent].min(low[node]);
                    }
                    if low[node] == number[node] {
                        let at = open.iter().rposition(|&member| member == node).unwrap_or(0);
                        let part = open.split_off(at);
                        for &member in &part {
                            on_stack[member] = false;
                        }
                        out.push(part);
                    }
                }
            }
        }
        out[first..].reverse();
    }
    out
}
