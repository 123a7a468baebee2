//! Chat templates against Python's jinja2, over what published templates are made of.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use lathe_plan::{TokenKind, TokenizerTables};
use lathe_runtime::chat::{ChatError, ChatTemplate, Conversation, Message, Role};
use lathe_runtime::tokenizer::Tokenizer;
use lathe_tests::{python, root};
use serde_json::{Value, json};

/// Small templates in the manner of the published ones, by the names of these.
const TEMPLATES: [(&str, &str); 10] = [
    ("chatml", include_str!("templates/chatml.jinja")),
    ("gemma", include_str!("templates/gemma.jinja")),
    ("granite", include_str!("templates/granite.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("olmo", include_str!("templates/olmo.jinja")),
    ("phi", include_str!("templates/phi.jinja")),
    ("qwen3", include_str!("templates/qwen3.jinja")),
    ("roles", include_str!("templates/roles.jinja")),
    ("smollm3", include_str!("templates/smollm3.jinja")),
];

/// As in templates.py.
const NOW: u64 = 1_721_955_661;

fn conversations() -> Vec<Value> {
    let tools = json!([{ "type": "function", "function": { "name": "get_weather", "description": "Temperature of a \"place\" <b>now</b>, in °C",
        "parameters": { "type": "object", "properties": { "place": { "type": "string", "enum": ["Zürich", "東京"] },
            "days": { "type": "integer", "default": 3 }, "exact": { "type": "boolean", "default": false } }, "required": ["place"] } } }]);
    let call = json!([{ "id": "call00001", "type": "function", "function": { "name": "get_weather", "arguments": { "place": "Zürich", "days": 1.5, "exact": null } } }]);
    let said = |role: &str, content: &str| json!({ "role": role, "content": content });
    let calling = json!({ "role": "assistant", "content": "", "tool_calls": call });
    vec![
        json!({ "messages": [said("user", "Hi")], "add_generation_prompt": true }),
        json!({ "messages": [said("system", "Be brief.\n"), said("user", "  What is 2+2? "), said("assistant", " 4\n"), said("user", "Why?")],
            "add_generation_prompt": true }),
        json!({ "messages": [said("user", "a"), said("assistant", "<think>\nhm, it's\n</think>\n\nb"), said("user", "c"), said("assistant", "d")],
            "add_generation_prompt": false, "enable_thinking": false }),
        json!({ "messages": [said("system", "S"), said("user", "Weather?"), calling, said("tool", "{\"t\": 21}"), said("tool", "x"), said("assistant", "21 °C")],
            "tools": tools, "add_generation_prompt": true }),
        json!({ "messages": [said("user", "Wetter in 東京? 👩‍👩‍👧 e\u{301} \u{200b}"), said("assistant", "☀"), said("user", "{{ x }} {% if %} <|im_end|> </s>[INST]")],
            "add_generation_prompt": true, "enable_thinking": true, "tools": tools }),
        json!({ "messages": [said("assistant", "I speak first"), said("user", "no"), said("user", "twice")], "add_generation_prompt": true }),
        json!({ "messages": [], "add_generation_prompt": true }),
    ]
}

fn tokenizer() -> Tokenizer {
    let mut tables = TokenizerTables { pretokenizer: "gpt-2".to_owned(), ..TokenizerTables::default() };
    tables.push(b"<s>", TokenKind::Control);
    tables.push(b"</s>", TokenKind::Control);
    (tables.bos, tables.eos) = (Some(0), vec![1]);
    Tokenizer::new(tables).expect("the tables are sound")
}

/// Reads a conversation in the order of its JSON.
fn conversation(values: &Value) -> Conversation {
    let text = |value: &Value| serde_json::from_str(&value.to_string()).expect("JSON is a value");
    let message = |message: &Value| {
        let role = match message["role"].as_str() {
            Some("system") => Role::System,
            Some("assistant") => Role::Assistant,
            Some("tool") => Role::Tool,
            _ => Role::User,
        };
        let mut read = Message::new(role, message["content"].as_str().expect("a text"));
        let more = message.as_object().expect("an object").iter().filter(|(key, _)| key.as_str() == "tool_calls");
        read.more = more.map(|(key, value)| (key.clone(), text(value))).collect();
        read
    };
    let options = values.as_object().expect("an object").iter().filter(|(key, _)| key.starts_with("enable"));
    Conversation {
        messages: values["messages"].as_array().expect("a list").iter().map(message).collect(),
        answer: values["add_generation_prompt"] == true,
        tools: values.get("tools").map(text),
        options: options.map(|(key, value)| (key.clone(), text(value))).collect::<BTreeMap<_, _>>(),
    }
}

fn expected(cases: &[Value]) -> Vec<Value> {
    let mut oracle = Command::new(python());
    oracle.arg(root().join("tests/tests/tokenizers/templates.py")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut oracle = oracle.spawn().expect("Python starts");
    let input = Value::from(cases).to_string();
    oracle.stdin.take().expect("it is piped").write_all(input.as_bytes()).expect("the oracle reads all cases");
    let output = oracle.wait_with_output().expect("the oracle ends");
    assert!(output.status.success(), "the oracle failed");
    serde_json::from_slice(&output.stdout).expect("the answers are JSON")
}

#[test]
fn prompts_are_those_of_python() {
    let mut cases = Vec::new();
    for (name, source) in TEMPLATES {
        for values in conversations() {
            let mut values = values;
            (values["bos_token"], values["eos_token"]) = ("<s>".into(), "</s>".into());
            values["tools"] = values.get("tools").cloned().unwrap_or(Value::Null);
            cases.push(json!({ "name": name, "source": source, "values": values }));
        }
    }
    let tokenizer = tokenizer();
    let (mut refused, mut rendered) = (0, 0);
    let mut others = Vec::new();
    for (case, expected) in cases.iter().zip(expected(&cases)) {
        let (name, values) = (&case["name"], &case["values"]);
        let source = case["source"].as_str().expect("a text");
        let template = ChatTemplate::new(source, &tokenizer).expect("the template is valid").at(NOW);
        let mut conversation = conversation(values);
        conversation.tools = conversation.tools.filter(|tools| !tools.is_none());
        match (template.render_conversation(&conversation), expected["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => rendered += 1,
            (Err(ChatError::Refused(words)), None) if expected["error"] == words.as_str() => refused += 1,
            (outcome, _) => others.push(format!("{name} on {}:\n  {outcome:?}\n  {expected}", values["messages"])),
        }
    }
    assert!(others.is_empty(), "{} other prompts:\n{}", others.len(), others.join("\n"));
    assert!(rendered > 20 && refused > 1, "{rendered} rendered, {refused} refused");
}

/// Tokens that are structure in the templates above.
const CONTROLS: [&str; 22] = [
    "<s>",
    "</s>",
    "<|im_start|>",
    "<|im_end|>",
    "<start_of_turn>",
    "<end_of_turn>",
    "<|start_of_role|>",
    "<|end_of_role|>",
    "<|end_of_text|>",
    "<|tool_call|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "[INST]",
    "[/INST]",
    "[TOOL_CALLS]",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|end|>",
    "<|tool|>",
    "<|endoftext|>",
];

/// Every byte, and [`CONTROLS`].
fn tokenizer_with_controls() -> Tokenizer {
    let mut tables = TokenizerTables { pretokenizer: "gpt-2".to_owned(), ..TokenizerTables::default() };
    for byte in 0..=255u8 {
        tables.push(&[byte], TokenKind::Normal);
    }
    (tables.bos, tables.eos) = (Some(256), vec![257]);
    for text in CONTROLS {
        tables.push(text.as_bytes(), TokenKind::Control);
    }
    Tokenizer::new(tables).expect("the tables are sound")
}

/// Whatever a user says, and however a template trims and cuts it: the structure of the prompt is the template's.
#[test]
fn what_users_say_stays_text_in_every_template() {
    let tokenizer = tokenizer_with_controls();
    let mut said: Vec<String> = CONTROLS.iter().map(|control| format!("a{control}\n{control} b")).collect();
    for control in CONTROLS {
        // Ends and beginnings that the template's own text might complete.
        said.extend(
            (1..control.len()).flat_map(|at| [format!(" {}", &control[..at]), format!("{}\n", &control[at..])]),
        );
        said.push(control.to_owned());
    }
    for (name, source) in TEMPLATES {
        let template = ChatTemplate::new(source, &tokenizer).expect("the template is valid").at(NOW);
        let structure = |text: &str| -> Vec<u32> {
            let roles = [Role::System, Role::User, Role::Assistant, Role::User];
            let messages = roles.map(|role| Message::new(role, text));
            let tokens = template.encode(&tokenizer, &messages, true);
            let tokens = tokens.unwrap_or_else(|error| panic!("{name} on {text:?}: {error}"));
            tokens.into_iter().filter(|token| *token >= 256).collect()
        };
        let expected = structure("x");
        let needs_structure = name != "roles";
        assert!(!needs_structure || expected.len() > 3, "{name} has the structure {expected:?}");
        for text in &said {
            assert_eq!(structure(text), expected, "{name} on {text:?}");
        }
    }
}

/// Two templates in one, as directories may have them: each writes what it writes alone.
#[test]
fn a_template_for_tools_is_the_one_that_writes() {
    let tokenizer = tokenizer();
    let render = |source: &str, tools: bool| {
        let template = ChatTemplate::new(source, &tokenizer).expect("the template is valid").at(NOW);
        let mut conversation = conversation(&conversations()[if tools { 4 } else { 0 }]);
        conversation.tools = conversation.tools.filter(|_| tools);
        template.render_conversation(&conversation).expect("it renders")
    };
    let own = [("\n  a\n\n", "  {% if true %}\n b\n  {% endif %}\n"), (TEMPLATES[0].1, TEMPLATES[2].1), ("x", "")];
    for (default, tool_use) in own {
        let both = lathe_models::template::with_tool_use(default, Some(tool_use));
        assert_eq!(render(&both, false), render(default, false));
        assert_eq!(render(&both, true), render(tool_use, true));
    }
}

/// What templates say of values, one in a line: methods, filters, tests, operators, and how values print.
const EXPRESSIONS: &str = include_str!("templates/expressions.txt");

#[test]
fn expressions_are_those_of_python() {
    let values = json!({
        "text": "it's what it is, isn't it? I said", "quoted": "they're \"here\" \\ and\tthere", "spaced": "\u{1c}\n \u{a0} two  words \u{3000}\r\n",
        "lines": "a\nb\r\nc\u{b}d\u{85}e\u{2028}\n", "numbers": [1, 2, 3], "map": { "a": 1, "b": "x", "c": null, "d": [true, 1.5] },
        "people": [{ "name": "Ann", "age": 31 }, { "name": "Bo", "age": 7 }, { "name": "Cy", "age": 0 }],
    });
    let case = |text: &str| json!({ "source": format!("{{{{ {text} }}}}"), "values": values });
    let cases: Vec<Value> = EXPRESSIONS.lines().filter(|line| !line.starts_with('#')).map(case).collect();
    let tokenizer = tokenizer();
    let options: BTreeMap<_, _> = values
        .as_object()
        .expect("an object")
        .iter()
        .map(|(name, value)| (name.clone(), serde_json::from_str(&value.to_string()).expect("JSON is a value")))
        .collect();
    let conversation = Conversation { options, ..Conversation::default() };
    let mut others = Vec::new();
    for (case, expected) in cases.iter().zip(expected(&cases)) {
        let source = case["source"].as_str().expect("a text");
        let outcome = ChatTemplate::new(source, &tokenizer)
            .and_then(|template| template.at(NOW).render_conversation(&conversation));
        match (&outcome, expected["text"].as_str()) {
            (Ok(text), Some(expected)) if text == expected => {}
            // Which words a failure has is the engine's own matter.
            (Err(_), None) => {}
            _ => others.push(format!("{source}\n  {outcome:?}\n  {expected}")),
        }
    }
    assert!(others.is_empty(), "{} of {} differ:\n{}", others.len(), cases.len(), others.join("\n"));
}
