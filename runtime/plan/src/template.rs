//! Chat templates as the plan carries them: Jinja with a tag of Hugging Face's own, which compiler and runtime read alike.

/// A template whose `generation` blocks are blocks that always hold, with the same trimming around them.
pub fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find("%}").map_or(rest.len(), |end| end + 2);
        let (tag, after) = rest.split_at(end);
        let word = tag.trim_matches(|c: char| "{}%-+".contains(c) || c.is_whitespace());
        match word {
            "generation" => out.push_str(&tag.replace(word, "if true")),
            "endgeneration" => out.push_str(&tag.replace(word, "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_blocks() {
        let source = "{%- generation -%}a{% endgeneration %}{{ 'generation' }}{% set generation = 1 %}{%";
        let expected = "{%- if true -%}a{% endif %}{{ 'generation' }}{% set generation = 1 %}{%";
        assert_eq!(without_generation_tags(source), expected);
    }
}
