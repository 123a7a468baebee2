//! Several files as one input: the length of each as a little-endian u32, then its bytes.

/// So many files; what an input lacks is empty, what it has beyond is ignored.
pub fn parts(mut input: &[u8], count: usize) -> Vec<&[u8]> {
    let mut part = || {
        let Some((length, rest)) = input.split_first_chunk::<4>() else { return &[][..] };
        let (part, rest) = rest.split_at(rest.len().min(u32::from_le_bytes(*length) as usize));
        input = rest;
        part
    };
    (0..count).map(|_| part()).collect()
}

/// The input of these files.
pub fn join<P: AsRef<[u8]>>(parts: &[P]) -> Vec<u8> {
    let file = |part: &P| [&(part.as_ref().len() as u32).to_le_bytes(), part.as_ref()].concat();
    parts.iter().flat_map(file).collect()
}
