//! A directory and a GGUF file of the same weights are the same model.

use lathe_ir::graph::{NodeKind, Weight};
use lathe_ir::scheme::Matrix;
use lathe_ir::types::DType;
use lathe_models::checkpoint::assemble;
use lathe_models::gguf::Gguf;
use lathe_models::gguf::write::to_bytes;
use lathe_models::hf::generation::Generation;
use lathe_models::hf::hub;
use lathe_models::layers::decoder::slots;
use lathe_models::tokenizer::TokenKind;
use lathe_models::{Model, from_gguf, open};
use serde_json::{Value, json};

use super::directory::{Tensor, directory, source};

fn gguf() -> Model {
    from_gguf(Gguf::from_bytes(to_bytes(&source()).unwrap()).unwrap(), "small.gguf").unwrap()
}

/// The graph's text, with each tensor called by its role in the graph and without the order of stored rows.
fn text(model: &Model) -> String {
    let mut text = model.graph.to_string();
    for slot in slots(&model.config, &model.names) {
        text = text.replace(&format!("\"{}\"", slot.tensor), &format!("\"{}\"", slot.name));
    }
    text.replace(" pairs_to_halves(32)", "")
}

fn weights(model: &Model) -> Vec<(String, Matrix)> {
    let weight = |weight: &Weight| (weight.name.clone(), assemble(&*model.checkpoint, weight).unwrap());
    let kinds = model.graph.order().into_iter().map(|id| &model.graph.node(id).kind);
    kinds.filter_map(|kind| if let NodeKind::Weight(of) = kind { Some(weight(of)) } else { None }).collect()
}

fn check_same(model: &Model) {
    let expected = gguf();
    assert_eq!(text(model), text(&expected));
    assert_eq!(weights(model), weights(&expected));
    assert_eq!(weights(model).len(), 20);
    let mut tokenizer = model.tokenizer.clone();
    assert_eq!(std::mem::take(&mut tokenizer.ends), [2]);
    assert_eq!(tokenizer, expected.tokenizer);
    assert_eq!(model.chat_template, expected.chat_template);
}

#[test]
fn one_file_is_the_same_model() {
    let folder = directory("BF16").write();
    let model = open(&folder).unwrap();
    check_same(&model);
    assert_eq!(model.origin.format, "hf");
    let names: Vec<_> = model.origin.files.iter().map(|file| file.strip_prefix(&folder).unwrap().to_str()).collect();
    let expected = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    assert_eq!(names, expected.map(Some));
}

#[test]
fn several_files_are_the_same_model() {
    check_same(&directory("BF16").sharded(|_| {}).open().unwrap());
}

#[test]
fn another_cache_type_keeps_the_names() {
    let model = directory("BF16").open().unwrap().with_cache(DType::F32).unwrap();
    assert!(model.graph.to_string().contains("cache<f32, 2x32>"));
}

#[test]
fn f32_and_f16_hold_the_same_values() {
    assert_eq!(weights(&directory("F32").open().unwrap()), weights(&gguf()));
    // The 8 bits of each value fit the 11 of f16, but for values so small that f16 counts in steps of 2⁻²⁴.
    for ((name, found), (_, expected)) in weights(&directory("F16").open().unwrap()).iter().zip(weights(&gguf())) {
        let close = |(found, expected): (&f32, &f32)| (found - expected).abs() <= f32::EPSILON;
        assert!(found.to_f32().iter().zip(&expected.to_f32()).all(close), "{name}");
    }
}

#[test]
fn merges_as_pairs_are_the_same_merges() {
    let mut directory = directory("BF16");
    let merges = directory.tokenizer["model"]["merges"].as_array_mut().unwrap();
    for merge in merges.iter_mut() {
        *merge = merge.as_str().unwrap().split(' ').collect();
    }
    check_same(&directory.open().unwrap());
}

#[test]
fn copies_of_what_the_model_holds_are_left_out() {
    let mut directory = directory("BF16");
    directory.tensors.insert("lm_head.weight".to_owned(), directory.tensors["model.embed_tokens.weight"].clone());
    let frequencies = Tensor::new("F32", &[16], &[0.5; 16]);
    directory.tensors.insert("model.layers.1.self_attn.rotary_emb.inv_freq".to_owned(), frequencies);
    check_same(&directory.open().unwrap());
}

#[test]
fn a_head_of_its_own_is_used() {
    let mut directory = directory("BF16");
    directory.config["tie_word_embeddings"] = false.into();
    directory.tensors.insert("lm_head.weight".to_owned(), Tensor::new("BF16", &[128, 64], &vec![0.25; 128 * 64]));
    assert_eq!(weights(&directory.open().unwrap()).len(), 21);
}

#[test]
fn rows_without_a_token_are_unused() {
    let mut directory = directory("BF16");
    directory.config["vocab_size"] = 130.into();
    directory
        .tensors
        .insert("model.embed_tokens.weight".to_owned(), Tensor::new("F32", &[130, 64], &vec![0.5; 130 * 64]));
    let tokens = directory.open().unwrap().tokenizer.tokens;
    assert_eq!(tokens.len(), 130);
    assert!(tokens[128..].iter().all(|token| token.kind == TokenKind::Unused));
}

#[test]
fn added_tokens_are_control_or_user_defined() {
    let mut directory = directory("BF16");
    let added = directory.tokenizer["added_tokens"].as_array_mut().unwrap();
    added.push(json!({ "id": 127, "content": "ĊĊ", "special": false, "normalized": true }));
    let token = &directory.open().unwrap().tokenizer.tokens[127];
    assert_eq!((token.kind, token.bytes.as_slice()), (TokenKind::UserDefined, "ĊĊ".as_bytes()));
}

#[test]
fn settings_add_tokens_and_change_how_they_are_matched() {
    let mut directory = directory("BF16");
    let added = |content: &str| json!({ "content": content, "rstrip": true, "normalized": false, "special": true });
    directory.tokenizer_config["added_tokens_decoder"] = json!({ "2": added("<|im_end|>"), "127": added("ĊĊ") });
    let tokenizer = directory.open().unwrap().tokenizer;
    assert_eq!(tokenizer.tokens[127].kind, TokenKind::Control);
    assert_eq!(
        tokenizer.matching.iter().map(|(id, how)| (*id, how.rstrip)).collect::<Vec<_>>(),
        [(2, true), (127, true)]
    );
}

#[test]
fn a_post_processor_adds_the_ends() {
    let special = |text: &str| json!({ "SpecialToken": { "id": text, "type_id": 0 } });
    let text = json!({ "Sequence": { "id": "A", "type_id": 0 } });
    let (bos, eos) = (special("<|im_start|>"), special("<|im_end|>"));
    let check = |single: Vec<&Value>, expected: (bool, bool)| {
        let mut directory = directory("BF16");
        let template = json!({ "type": "TemplateProcessing", "single": single, "pair": [], "special_tokens": {} });
        let steps = [json!({ "type": "ByteLevel", "trim_offsets": false }), template];
        directory.tokenizer["post_processor"] = json!({ "type": "Sequence", "processors": steps });
        let tokenizer = directory.open().unwrap().tokenizer;
        assert_eq!((tokenizer.add_bos, tokenizer.add_eos), expected);
    };
    check(vec![&text], (false, false));
    check(vec![&bos, &text], (true, false));
    check(vec![&text, &eos], (false, true));
    check(vec![&bos, &text, &eos], (true, true));
}

#[test]
fn end_tokens_come_from_the_generation_settings_first() {
    let mut directory = directory("BF16");
    directory.files.insert("generation_config.json", br#"{"eos_token_id": [0, 2], "temperature": 0.6}"#.to_vec());
    let tokenizer = directory.open().unwrap().tokenizer;
    assert_eq!((tokenizer.eos, tokenizer.ends), (Some(2), vec![0, 2]));
}

#[test]
fn how_to_sample_comes_from_the_generation_settings() {
    let read = |settings: Value| {
        let mut directory = directory("BF16");
        directory.files.insert("generation_config.json", settings.to_string().into_bytes());
        directory.open().unwrap().generation
    };
    assert_eq!(directory("BF16").open().unwrap().generation, Generation::default());
    let all = json!({
        "do_sample": true, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "min_p": 0, "repetition_penalty": 1.1,
        "eos_token_id": [1, 2], "max_length": 99, "typical_p": null,
    });
    let expected = Generation {
        do_sample: Some(true),
        temperature: Some(0.7),
        top_p: Some(0.8),
        top_k: Some(20),
        min_p: Some(0.0),
        repetition_penalty: Some(1.1),
    };
    assert_eq!(read(all), expected);
    let some = json!({ "do_sample": false, "temperature": null });
    assert_eq!(read(some), Generation { do_sample: Some(false), ..Generation::default() });
}

#[test]
fn a_byte_order_mark_and_a_type_of_one_s_own_change_nothing() {
    let mut directory = directory("BF16");
    directory.config["model_type"] = "my_llama".into();
    let marked = |value: &Value| [b"\xef\xbb\xbf", value.to_string().as_bytes()].concat();
    directory.files.insert("config.json", marked(&directory.config));
    directory.files.insert("tokenizer_config.json", marked(&directory.tokenizer_config));
    assert_eq!(directory.open().unwrap().config.layers, 2);
}

#[test]
fn special_tokens_may_stand_in_a_file_of_their_own() {
    let mut directory = directory("BF16");
    directory.files.insert("special_tokens_map.json", directory.tokenizer_config.to_string().into_bytes());
    directory.tokenizer_config = json!({ "bos_token": null });
    let tokenizer = directory.open().unwrap().tokenizer;
    assert_eq!((tokenizer.bos, tokenizer.eos, tokenizer.unk), (Some(1), Some(2), Some(0)));
}

#[test]
fn the_template_file_comes_before_the_settings() {
    let mut directory = directory("BF16");
    let named = json!([{ "name": "tools", "template": "a" }, { "name": "default", "template": "b" }]);
    directory.tokenizer_config["chat_template"] = named;
    assert_eq!(directory.open().unwrap().chat_template.as_deref(), Some("b"));
    directory.files.insert("chat_template.jinja", b"c".to_vec());
    assert_eq!(directory.open().unwrap().chat_template.as_deref(), Some("c"));
}

#[test]
fn a_template_for_tools_is_taken_where_there_are_tools() {
    let mut directory = directory("BF16");
    let named = json!([{ "name": "tool_use", "template": "a\n" }, { "name": "default", "template": "b" }]);
    directory.tokenizer_config["chat_template"] = named;
    let joined = |a: &str, b: &str| Some(format!("{{% if tools %}}\n{a}{{%+ else %}}\n{b}{{%+ endif %}}"));
    assert_eq!(directory.open().unwrap().chat_template, joined("a", "b"));
    // Files beside it come before the settings.
    directory.files.insert("chat_template.jinja", b"c\n".to_vec());
    let folder = directory.write();
    std::fs::create_dir(folder.join("additional_chat_templates")).unwrap();
    std::fs::write(folder.join("additional_chat_templates/tool_use.jinja"), "d").unwrap();
    assert_eq!(open(&folder).unwrap().chat_template, joined("d", "c"));
}

#[test]
fn the_licence_is_what_the_card_or_the_file_states() {
    let licence = |files: &[(&'static str, &str)]| {
        let mut directory = directory("BF16");
        directory.files.extend(files.iter().map(|(name, text)| (*name, text.as_bytes().to_vec())));
        directory.open().unwrap().licence
    };
    let file = ("LICENSE", "\n   The Small Licence\n\nDo as you like.\n");
    assert_eq!(licence(&[]), None);
    assert_eq!(licence(&[file]).as_deref(), Some("The Small Licence"));
    assert_eq!(licence(&[("README.md", "# A card\nlicense: none of these\n")]), None);
    let card = "---\nlibrary: x\nlicense: apache-2.0\n---\n# A card\n";
    assert_eq!(licence(&[("README.md", card), file]).as_deref(), Some("apache-2.0"));
    let other = "---\nlicense: other\nlicense_name: \"small\"\n---\n";
    assert_eq!(licence(&[("README.md", other)]).as_deref(), Some("small"));
}

#[test]
fn a_name_of_the_hub_leads_to_the_snapshot() {
    let cache = directory("BF16").write().join("hub");
    let model = cache.join("models--some-org--small_model.v1");
    directory("BF16").write_to(&model.join("snapshots/0123abcd"));
    std::fs::create_dir_all(model.join("refs")).unwrap();
    std::fs::write(model.join("refs/main"), "0123abcd\n").unwrap();
    for name in ["some-org/small_model.v1", "some-org/small_model.v1@main", "some-org/small_model.v1@0123abcd"] {
        let found = hub::find(name, &cache).unwrap();
        assert_eq!(found, model.join("snapshots/0123abcd"));
        assert_eq!(open(&found).unwrap().config.name, "some-org/small_model.v1");
    }
    let refused = |name: &str, word: &str| {
        let message = hub::find(name, &cache).unwrap_err().to_string();
        assert!(message.contains(word), "{message}");
    };
    refused("some-org/other", "hf download some-org/other");
    refused("some-org/small_model.v1@v2", "'v2'");
    for name in ["small_model", "../small_model", "some-org/..", "a/b/c", "some-org/small_model.v1@../main", "/b"] {
        refused(name, "hf://org/name");
    }
    // A reference that leads out of the cache is none.
    std::fs::write(model.join("refs/main"), "../../..").unwrap();
    refused("some-org/small_model.v1", "a snapshot of");
}
