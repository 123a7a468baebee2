//! Chat templates of a model that has several: one for conversations with tools, which checkpoints call `tool_use`, and one
//! for all others.

/// One template in place of two.
pub fn with_tool_use(default: &str, tool_use: Option<&str>) -> String {
    // The last line break of a template is not part of what it writes, nor is that after a tag, behind which a template is
    // at the start of a line as it is by itself.
    let inner = |text: &str| text.strip_suffix('\n').unwrap_or(text).to_owned();
    match tool_use {
        None => default.to_owned(),
        Some(tool_use) => {
            format!("{{% if tools %}}\n{}{{%+ else %}}\n{}{{%+ endif %}}", inner(tool_use), inner(default))
        }
    }
}
