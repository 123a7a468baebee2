//! Knobs by the names that `config.json` has for them: checks that serve every format speak of knobs as GGUF files do.

use crate::config::Metadata;
use crate::error::ModelError;

/// A knob's name in GGUF files behind the architecture, and those that it may have in `config.json`, the usual one first.
const NAMES: &[(&str, &[&str])] = &[
    ("block_count", &["num_hidden_layers", "n_layer"]),
    ("attention.head_count_kv", &["num_key_value_heads"]),
    ("attention.key_length", &["head_dim"]),
    ("attention.layer_norm_rms_epsilon", &["rms_norm_eps"]),
    ("attention.layer_norm_epsilon", &["layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"]),
    ("attention.sliding_window_pattern", &["layer_types", "sliding_window_pattern"]),
    ("attention.scale", &["query_pre_attn_scalar", "attention_multiplier"]),
    ("attn_logit_softcapping", &["attn_logit_softcapping"]),
    ("final_logit_softcapping", &["final_logit_softcapping"]),
    ("embedding_scale", &["embedding_multiplier"]),
    ("residual_scale", &["residual_multiplier"]),
    ("logit_scale", &["logits_scaling"]),
    ("rope.freq_base", &["rope_theta", "rope_parameters.rope_theta"]),
    ("rope.dimension_count", &["partial_rotary_factor", "rope_parameters.partial_rotary_factor"]),
    ("rope.unrotated_layers", &["no_rope_layers", "no_rope_layer_interval"]),
];

/// The same error with the knob's name in this file.
pub fn respell(error: ModelError, metadata: &Metadata) -> ModelError {
    let ModelError::Key { key, expected, found } = error else { return error };
    let knob = key.split_once('.').map_or(key.as_str(), |(_, knob)| knob);
    let names = NAMES.iter().find(|(gguf, _)| *gguf == knob).map_or(&[][..], |(_, names)| names);
    let name = names.iter().find(|name| metadata.get(name).is_some()).or(names.first());
    ModelError::Key { key: name.map_or(key, |&name| name.to_owned()), expected, found }
}
