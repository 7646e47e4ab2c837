//! Answers of models that choose at random, within small budgets.

use std::sync::LazyLock;

use proptest::prelude::*;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::*;
use crate::TextStream;

/// More logits than the tokenizer has tokens, as padded models have.
const PADDING: usize = 13;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let texts = [
            "{\"name\": \"Lora\", \"age\": 12, \"tags\": [\"a\", \"b\"], \"ok\": true, \"none\": null}",
            "<tool_call>{\"name\": \"add\", \"arguments\": {\"a\": 1.5, \"b\": 20}}</tool_call>",
            "{\"name\": \"Café\", \"age\": 7}, {\"name\": \"日本\", \"age\": 41}, the name and the age of 🎉",
        ];
        Tokenizer::train(texts.into_iter().chain(texts).map(Ok), 380).unwrap()
    });
    &TOKENIZER
}

fn grammars() -> &'static Grammars {
    static GRAMMARS: LazyLock<Grammars> =
        LazyLock::new(|| Grammars::new(tokenizer(), tokenizer().vocab_size() + PADDING).unwrap());
    &GRAMMARS
}

/// What a model without sense writes: anything, or letters as long as it may, or what opens something.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Habit {
    Anything,
    Letters,
    Openings,
    Nan,
}

const HABITS: [Habit; 4] = [Habit::Anything, Habit::Letters, Habit::Openings, Habit::Nan];

struct Answer {
    text: String,
    tokens: Vec<u32>,
    /// Ended by the end token or because nothing may follow.
    ended: bool,
}

fn answer(constraint: Constraint, budget: usize, habit: Habit, seed: u64) -> Answer {
    answer_of(tokenizer(), constraint, budget, habit, seed)
}

fn answer_of(
    tokenizer: &Tokenizer,
    mut constraint: Constraint,
    budget: usize,
    habit: Habit,
    seed: u64,
) -> Answer {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut stream = TextStream::new(tokenizer, &[], true);
    let (mut text, mut tokens) = (String::new(), Vec::new());
    let mut ended = false;
    for left in (1..=budget).rev() {
        let mut logits: Vec<f32> = (0..constraint.vocabulary.size)
            .map(|id| {
                let bytes = constraint.vocabulary.bytes(id as u32);
                let liked = match habit {
                    Habit::Anything => false,
                    Habit::Letters => !bytes.is_empty() && bytes.iter().all(|b| b.is_ascii_alphanumeric()),
                    Habit::Openings => bytes.iter().any(|b| b"{[,<".contains(b)),
                    Habit::Nan => return f32::NAN,
                };
                random.random::<f32>() + if liked { 5.0 } else { 0.0 }
            })
            .collect();
        let pick = |logits: &[f32]| {
            (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(token, _)| token)
        };
        let token = constraint.choose(&mut logits, left, pick).unwrap();
        tokens.push(token);
        if tokenizer.eos_ids().contains(&token) {
            ended = true;
            break;
        }
        text += &stream.push(token).unwrap();
        if constraint.is_complete() {
            ended = true;
            break;
        }
    }
    text += &stream.finish().unwrap();
    Answer { text, tokens, ended }
}

/// Answers to `shape` of every habit, with budgets from the least on; each is whole and `accepts` it.
fn answers_are_whole(shape: &Shape, seeds: u64, accepts: impl Fn(&str) -> bool) {
    let start = grammars().constraint(shape).unwrap();
    let least = start.shortest();
    for seed in 0..seeds {
        for habit in HABITS {
            for budget in [least, least + 1, least + 2, least + 5, least + 20, least + 90] {
                let answer = answer(start.clone(), budget, habit, seed);
                let told = format!("{shape:?} {habit:?} budget {budget} seed {seed}: {:?}", answer.text);
                assert!(answer.ended, "not ended: {told}");
                assert!(accepts(&answer.text), "not accepted: {told}");
                let special = answer.tokens.iter().rev().skip(1).any(|id| tokenizer().is_special(*id));
                assert!(!special, "special tokens: {told}");
            }
        }
    }
}

/// Whether `schema` accepts `value`, for the words that the tests use.
fn accepts(root: &Value, schema: &Value, value: &Value) -> bool {
    let number = |name: &str| schema[name].as_f64();
    if let Some(path) = schema["$ref"].as_str() {
        let target = if path == "#" { root } else { root.pointer(&path[1..]).unwrap() };
        return accepts(root, target, value);
    }
    if let Some(options) = schema["anyOf"].as_array() {
        return options.iter().any(|option| accepts(root, option, value));
    }
    if let Some(options) = schema["enum"].as_array() {
        return options.contains(value);
    }
    if let Some(wanted) = schema.get("const") {
        return value == wanted;
    }
    let size = |least: &str, most: &str, got: usize| {
        number(least).is_none_or(|n| got as f64 >= n) && number(most).is_none_or(|n| got as f64 <= n)
    };
    match schema["type"].as_str() {
        None => true,
        Some("null") => value.is_null(),
        Some("boolean") => value.is_boolean(),
        Some("integer" | "number") => value.as_f64().is_some_and(|n| {
            number("minimum").is_none_or(|least| n >= least)
                && number("maximum").is_none_or(|most| n <= most)
                && (schema["type"] == "number" || n.fract() == 0.0)
                && number("multipleOf").is_none_or(|step| n % step == 0.0)
        }),
        Some("string") => {
            value.as_str().is_some_and(|text| size("minLength", "maxLength", text.chars().count()))
        }
        Some("array") => value.as_array().is_some_and(|items| {
            size("minItems", "maxItems", items.len())
                && items.iter().all(|item| accepts(root, &schema["items"], item))
        }),
        Some("object") => value.as_object().is_some_and(|entries| {
            let required = schema["required"].as_array().into_iter().flatten();
            required.into_iter().all(|name| entries.contains_key(name.as_str().unwrap()))
                && entries.iter().all(|(name, entry)| match schema["properties"].get(name) {
                    Some(property) => accepts(root, property, entry),
                    None => schema["additionalProperties"] != false,
                })
        }),
        Some(other) => panic!("the checker does not know {other}"),
    }
}

fn schema_answers_are_whole(schema: &Value, seeds: u64) {
    answers_are_whole(&Shape::JsonSchema(schema.clone()), seeds, |text| {
        serde_json::from_str::<Value>(text).is_ok_and(|value| accepts(schema, schema, &value))
    });
}

#[test]
fn answers_in_json_mode_are_objects_whatever_the_budget() {
    answers_are_whole(&Shape::JsonObject, 6, |text| {
        serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object())
    });
}

#[test]
fn answers_are_what_the_schema_accepts_whatever_the_budget() {
    let person = json!({"type": "object", "properties": {
        "name": {"type": "string", "minLength": 2, "maxLength": 9},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "mood": {"enum": ["glad", "sad \"\\\" é", null, 3]},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 2}
    }, "required": ["tags", "name", "mood"], "additionalProperties": false});
    let tree = json!({"$defs": {"node": {"type": "object", "properties": {
        "value": {"type": "number"},
        "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
        "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}
    }, "required": ["value", "next", "children"], "additionalProperties": false}}, "$ref": "#/$defs/node"});
    // The optional part needs far more tokens than the rest: it must not be begun late.
    let heavy: serde_json::Map<String, Value> =
        (0..30).map(|n| (format!("property number {n}"), json!({"type": "boolean"}))).collect();
    let names: Vec<&String> = heavy.keys().collect();
    let heavy = json!({"type": "object", "properties": {
        "light": {"type": "integer"},
        "heavy": {"type": "object", "properties": heavy, "required": names, "additionalProperties": false}
    }, "required": ["light"], "additionalProperties": false});
    let open = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
    for schema in [person, tree, heavy, open] {
        schema_answers_are_whole(&schema, 4);
    }
    for schema in [
        json!({"type": "integer"}),
        json!({"type": "integer", "minimum": 100, "multipleOf": 7}),
        json!({"type": "number", "minimum": -2.5, "maximum": 1e12}),
        json!({"type": "array", "items": {"type": "integer", "minimum": 100_000_000_000_000_000u64}, "minItems": 1}),
        json!({"type": "string"}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 3, "maxItems": 4}),
        json!({"const": {"a": [1, "b"]}}),
        json!({}),
        json!({"anyOf": [{"type": "string", "maxLength": 3}, {"type": "array", "items": {}}]}),
    ] {
        schema_answers_are_whole(&schema, 4);
    }
}

#[test]
fn patterns_and_formats_are_met_when_the_budget_ends() {
    let ends = |pattern: &'static str| move |text: &str| text.ends_with(pattern);
    for (schema, accepts) in [
        (json!({"type": "string", "pattern": "^(ab)*c$"}), ends("c\"")),
        (json!({"type": "string", "pattern": "^[a-z]+@[a-z]+\\.com$"}), ends(".com\"")),
        (json!({"type": "string", "pattern": "^[日本]{2,}$"}), ends("\"")),
        // Without an anchor, a pattern may stand anywhere.
        (json!({"type": "string", "pattern": "[A-Z]+x"}), ends("\"")),
        (json!({"type": "string", "format": "date-time"}), ends("\"")),
        (json!({"type": "string", "format": "uuid"}), ends("\"")),
    ] {
        answers_are_whole(&Shape::JsonSchema(schema), 3, |text| {
            accepts(text) && serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_string())
        });
    }
}

#[test]
fn texts_that_an_answer_cannot_hold_are_refused() {
    for schema in [json!({"const": "a\u{b}b"}), json!({"enum": ["a", "\u{7f}"]})] {
        let error = grammars().constraint(&Shape::JsonSchema(schema)).unwrap_err().to_string();
        assert!(error.contains("control character"), "{error}");
    }
    let schema = json!({"const": "a\u{8}\u{c}\n\r\t"});
    answers_are_whole(&Shape::JsonSchema(schema.clone()), 2, |text| {
        serde_json::from_str::<Value>(text).is_ok_and(|value| value == schema["const"])
    });
}

#[test]
fn the_order_of_the_schema_is_kept_and_nothing_is_indented() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "integer"}, "a": {"type": "boolean"}},
        "required": ["z", "a"], "additionalProperties": false});
    answers_are_whole(&Shape::JsonSchema(schema), 4, |text| {
        let compact = text.replace(": ", ":").replace(", ", ",");
        compact.starts_with("{\"z\":") && compact.contains(",\"a\":") && !compact.contains([' ', '\n'])
    });
}

fn tools() -> Vec<Tool> {
    let add = json!({"type": "object", "properties": {"a": {"$ref": "#/$defs/n"}, "b": {"$ref": "#/$defs/n"}},
        "required": ["a", "b"], "additionalProperties": false, "$defs": {"n": {"type": "number"}}});
    let find = json!({"properties": {"where": {"enum": ["here", "there"]}}, "required": ["where"],
        "additionalProperties": false});
    let tool = |name: &str, parameters: Value| Tool { name: name.to_string(), parameters };
    vec![tool("add", add), tool("find-it", find), tool("now", Value::Null)]
}

fn call_is_valid(call: &ToolCall) -> bool {
    let tool = tools().into_iter().find(|tool| tool.name == call.name);
    tool.is_some_and(|tool| {
        tool.parameters.is_null() || accepts(&tool.parameters, &tool.parameters, &call.arguments)
    })
}

fn calls(choice: ToolChoice) -> Shape {
    Shape::ToolCalls { tools: tools(), choice }
}

#[test]
fn required_tool_calls_are_calls_of_given_tools_and_nothing_else() {
    answers_are_whole(&calls(ToolChoice::Required), 4, |text| {
        let (rest, calls) = parse_tool_calls(text);
        rest.is_empty() && !calls.is_empty() && calls.iter().all(call_is_valid)
    });
    for name in ["add", "find-it", "now"] {
        answers_are_whole(&calls(ToolChoice::Named(name.to_string())), 2, |text| {
            let (rest, calls) = parse_tool_calls(text);
            rest.is_empty() && calls.len() == 1 && calls.iter().all(|c| call_is_valid(c) && c.name == name)
        });
    }
}

/// Writes `text` token by token; what may not come ends it. Returns the bytes written.
fn write(constraint: &mut Constraint, text: &str, mut left: usize) -> usize {
    let mut written = 0;
    for token in tokenizer().encode_plain(text).unwrap() {
        let mut logits = vec![0.0; tokenizer().vocab_size() + PADDING];
        if constraint.choose(&mut logits, left, |_| token).unwrap() != token {
            break;
        }
        written += constraint.vocabulary.bytes(token).len();
        left -= 1;
    }
    written
}

#[test]
fn with_auto_an_answer_is_free_text_or_whole_calls() {
    let start = grammars().constraint(&calls(ToolChoice::Auto)).unwrap();
    assert_eq!(start.shortest(), 0);
    for text in ["The name is <tool_call> 5", " <tool_cable", "  <tool_call>no", "<", "日本"] {
        let mut constraint = start.clone();
        assert_eq!(write(&mut constraint, text, 100), text.len(), "{text:?}");
        assert!(!constraint.is_complete());
    }
    for (text, written) in [
        ("<tool_call>x", "<tool_call>"),
        (" <tool_call>{\"name\": \"sub", " <tool_call>{\"name\": \""),
        (
            "<tool_call>\n{\"name\":\"now\",\"arguments\":{}}\n</tool_call>\n<tool_call>{\"name\": \"find-it\"",
            "",
        ),
    ] {
        let written = if written.is_empty() { text } else { written };
        let mut constraint = start.clone();
        // A token of several letters is not taken apart, so less may be written, never more.
        let got = write(&mut constraint, text, 100);
        assert!(got <= written.len() && got + 4 >= written.len(), "{text:?}: {got} bytes");
    }
    // A call is only begun where it can be ended.
    for budget in 1..60 {
        for habit in HABITS {
            let answer = answer(start.clone(), budget, habit, budget as u64);
            let (_, calls) = parse_tool_calls(&answer.text);
            let begun = begins_call(answer.text.as_bytes());
            assert!(!begun || (!calls.is_empty() && calls.iter().all(call_is_valid)), "{:?}", answer.text);
        }
        let mut constraint = start.clone();
        let call = "<tool_call>{\"name\": \"find-it\", \"arguments\": {\"where\": \"there\"}}</tool_call>";
        let tokens = tokenizer().encode_plain(call).unwrap();
        let text = {
            let mut wanted = tokens.into_iter();
            let mut text = Vec::new();
            for left in (1..=budget).rev() {
                let next = wanted.next().unwrap_or(tokenizer().eos_ids()[0]);
                let mut logits = vec![0.0; tokenizer().vocab_size() + PADDING];
                let token = constraint.choose(&mut logits, left, |_| next).unwrap();
                text.extend_from_slice(constraint.vocabulary.bytes(token));
                if constraint.is_complete() {
                    break;
                }
            }
            String::from_utf8(text).unwrap()
        };
        let begun = text.starts_with(CALL_BEGIN);
        assert_eq!(parse_tool_calls(&text).1.len(), usize::from(begun), "budget {budget}: {text:?}");
    }
}

#[test]
fn what_cannot_be_a_schema_is_an_error_that_says_why() {
    let deep = (0..60).fold(json!({}), |inner, _| json!({"type": "array", "items": inner}));
    let wide: serde_json::Map<String, Value> = (0..3000).map(|n| (format!("p{n}"), json!({}))).collect();
    let counted: serde_json::Map<String, Value> = (0..33).map(|n| (format!("p{n}"), json!({}))).collect();
    let patterns: serde_json::Map<String, Value> =
        (0..20).map(|n| (format!("^{n}"), json!({"type": "null"}))).collect();
    for (schema, says) in [
        (json!([]), "an array"),
        (json!(false), "accepts nothing"),
        (json!({"type": "thing"}), "Invalid type"),
        (json!({"type": 3}), "type must be"),
        (json!({"not": {}}), "not"),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"$ref": "#/$defs/missing"}), "missing"),
        (json!({"$ref": "https://example.com/schema"}), "$ref"),
        (json!({"type": "string", "pattern": "("}), ""),
        (json!({"type": "string", "minLength": 5, "maxLength": 2}), "minLength"),
        (json!({"type": "string", "minLength": 5000}), "at most 2000 tokens"),
        (json!({"type": "integer", "minimum": 5, "maximum": 2}), "minimum"),
        (json!({"type": "number", "maximum": 1e20}), "1e20"),
        (json!({"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]}), "recursion"),
        (json!({"$ref": "#"}), ""),
        (json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}), ""),
        (json!({"type": "string", "format": "é".repeat(90)}), ""),
        (json!({"type": "integer", "minimum": "é".repeat(90)}), ""),
        (json!({"properties": counted, "minProperties": 1}), "at most 32 properties"),
        (deep, "nested"),
        (json!({"properties": wide}), "too large"),
        (json!({"type": "object", "patternProperties": patterns}), "too large"),
        (json!({"type": "string", "description": "x".repeat(70_000)}), "too large"),
    ] {
        let error = grammars().constraint(&Shape::JsonSchema(schema.clone())).unwrap_err();
        let told = error.to_string();
        assert!(told.starts_with("the schema: ") && told.contains(says), "{schema}: {told}");
        assert!(told.len() < 500 && !told.contains('\n'), "{told}");
    }
}

#[test]
fn what_cannot_be_tools_is_an_error_that_says_why() {
    let tool = |name: &str, parameters: Value| Tool { name: name.to_string(), parameters };
    let named = ToolChoice::Named("b".to_string());
    for (tools, choice, says) in [
        (vec![], ToolChoice::Auto, "there are none"),
        (vec![tool("a", json!({}))], named, "none is named \"b\""),
        (vec![tool("a\"b", json!({}))], ToolChoice::Required, "cannot be a tool's name"),
        (vec![tool("", json!({}))], ToolChoice::Auto, "cannot be a tool's name"),
        (vec![tool("a", json!({"type": "string"}))], ToolChoice::Auto, "the parameters of tool \"a\""),
        (vec![tool("a", json!("x"))], ToolChoice::Auto, "the parameters of tool \"a\""),
        (vec![tool("a", json!({"not": {}}))], ToolChoice::Required, "the parameters of tool \"a\""),
    ] {
        let error = grammars().constraint(&Shape::ToolCalls { tools, choice }).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn an_option_that_cannot_be_ended_is_never_begun() {
    let endless = json!({"$defs": {"e": {"type": "object", "properties": {"e": {"$ref": "#/$defs/e"}},
        "required": ["e"], "additionalProperties": false}},
        "type": "object", "properties": {"e": {"$ref": "#/$defs/e"}, "a": {"type": "integer"}},
        "additionalProperties": false});
    schema_answers_are_whole(&endless, 2);
}

#[test]
fn a_schema_cannot_change_how_its_json_is_written() {
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"],
        "additionalProperties": false, "x-guidance": {"whitespace_flexible": true, "key_separator": "="}});
    schema_answers_are_whole(&schema, 1);
}

#[test]
fn logits_of_another_model_are_refused() {
    let mut constraint = grammars().constraint(&Shape::JsonObject).unwrap();
    let error = constraint.choose(&mut [0.0; 3], 10, |_| 0).unwrap_err();
    assert_eq!(error, ConstraintError::Logits { expected: tokenizer().vocab_size() + PADDING, got: 3 });
}

#[test]
fn constraints_go_between_threads() {
    fn sent<T: Send>() {}
    fn shared<T: Send + Sync>() {}
    sent::<Constraint>();
    shared::<Grammars>();
}

/// Answers in all habits with a tokenizer of someone else.
fn answers_of_another_are_whole(tokenizer: &Tokenizer) {
    let schema = json!({"type": "object", "properties": {
        "a name": {"enum": ["the one", "the other é日"]}, "n": {"type": "integer"}, "text": {"type": "string"}
    }, "required": ["a name", "text"], "additionalProperties": false});
    let grammars = Grammars::new(tokenizer, tokenizer.vocab_size()).unwrap();
    let start = grammars.constraint(&Shape::JsonSchema(schema.clone())).unwrap();
    for seed in 0..4 {
        for habit in HABITS {
            for more in [0, 3, 30] {
                let answer = answer_of(tokenizer, start.clone(), start.shortest() + more, habit, seed);
                let whole = tokenizer.decode(&answer.tokens, true).unwrap();
                assert!(
                    answer.ended && whole.trim_start() == answer.text.trim_start(),
                    "{whole:?} {:?}",
                    answer.text
                );
                let value: Value = serde_json::from_str(&whole).unwrap();
                assert!(accepts(&schema, &schema, &value), "{whole:?}");
            }
        }
    }
}

#[test]
fn sentencepiece_tokenizers_write_the_same_forms() {
    let mut pieces: Vec<String> = ["<unk>", "<s>", "</s>"].map(String::from).to_vec();
    pieces.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let whole = ["▁", "▁{", "▁\"", "▁the", "▁▁", "name", "▁name", "{\"", "\":", "\",", "日", "é"];
    pieces.extend(whole.map(String::from));
    pieces.extend((b' '..=b'~').filter(|byte| *byte != b' ').map(|byte| char::from(byte).to_string()));
    let vocab: serde_json::Map<String, Value> =
        pieces.iter().enumerate().map(|(id, piece)| (piece.clone(), json!(id))).collect();
    let special = |id: usize| {
        json!({"id": id, "content": pieces[id], "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let file = json!({"version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(0), special(1), special(2)],
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocab, "merges": []}});
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("tokenizer.json"), file.to_string()).unwrap();
    std::fs::write(folder.path().join("tokenizer_config.json"), "{\"eos_token\": \"</s>\"}").unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    for text in ["{\"the name\": \"日本 é\"}", "a  b\n"] {
        let ids = tokenizer.encode_plain(text).unwrap();
        let bytes: Vec<u8> = ids.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect();
        assert_eq!(String::from_utf8(bytes).unwrap(), format!(" {text}"));
    }
    answers_of_another_are_whole(&tokenizer);
    // A decoder that adds spaces as it likes.
    let mut words = file;
    words["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
    std::fs::write(folder.path().join("tokenizer.json"), words.to_string()).unwrap();
    let tokenizer = Tokenizer::load(folder.path()).unwrap();
    assert!(matches!(Grammars::new(&tokenizer, 400), Err(ConstraintError::Tokenizer { .. })));
}

#[test]
fn tokenizers_of_hugging_face_write_the_same_forms() {
    let beside = std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared"));
    let shared = std::env::var_os("STRATA_SHARED").map_or(beside, std::path::PathBuf::from);
    for family in ["gpt2", "llama", "llama3", "cohere", "mamba2"] {
        let folder = shared.join("fixtures/hf").join(family);
        if !folder.exists() {
            eprintln!("SKIPPED: {} is not there; set STRATA_SHARED", folder.display());
            continue;
        }
        answers_of_another_are_whole(&Tokenizer::load(&folder).unwrap());
    }
}

#[test]
fn a_clone_goes_its_own_way() {
    let mut first = grammars().constraint(&calls(ToolChoice::Required)).unwrap();
    let mut second = first.clone();
    write(&mut first, "<tool_call>{\"name\": \"add\"", 100);
    let text = "<tool_call>{\"name\": \"now\", \"arguments\": {}}</tool_call>";
    assert_eq!(write(&mut second, text, 100), text.len());
}

/// Schemas of nested objects, arrays and values, each part required or not.
fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "null"})),
        Just(json!({"type": "number"})),
        Just(json!({"type": "string"})),
        (0u8..4, 0u8..4).prop_map(|(a, b)| json!({"type": "string", "minLength": a, "maxLength": a + b})),
        (-50i32..50, 0i32..500).prop_map(|(a, b)| json!({"type": "integer", "minimum": a, "maximum": a + b})),
        proptest::collection::vec("[a-zé\" ]{0,6}", 1..4).prop_map(|names| json!({"enum": names})),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            (inner.clone(), 0u8..3, 0u8..3).prop_map(
                |(item, a, b)| json!({"type": "array", "items": item, "minItems": a, "maxItems": a + b})
            ),
            (proptest::collection::vec(("[a-z]{1,5}", inner.clone(), any::<bool>()), 0..4), any::<bool>())
                .prop_map(|(entries, closed)| {
                    let properties: serde_json::Map<String, Value> =
                        entries.iter().map(|(name, schema, _)| (name.clone(), schema.clone())).collect();
                    let mut required: Vec<&String> =
                        entries.iter().filter(|entry| entry.2).map(|entry| &entry.0).collect();
                    required.dedup();
                    json!({"type": "object", "properties": properties, "required": required,
                        "additionalProperties": !closed})
                }),
            proptest::collection::vec(inner, 1..3).prop_map(|options| json!({"anyOf": options})),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_schema_any_model_any_budget_gives_what_the_schema_accepts(
        schema in schemas(), more in 0usize..40, habit in proptest::sample::select(HABITS.to_vec()), seed: u64,
    ) {
        let start = grammars().constraint(&Shape::JsonSchema(schema.clone())).unwrap();
        let answer = answer(start.clone(), start.shortest() + more, habit, seed);
        prop_assert!(answer.ended, "{}", answer.text);
        let value: Value = serde_json::from_str(&answer.text).unwrap();
        prop_assert!(accepts(&schema, &schema, &value), "{} {}", schema, value);
    }
}
