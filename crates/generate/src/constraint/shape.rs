//! What an answer must look like, and the grammar of it.

use llguidance::JsonCompileOptions;
use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Map, Value, json};

use super::ConstraintError;

/// What an answer must look like. One space may come before it.
#[derive(Debug, Clone, PartialEq)]
pub enum Shape {
    /// Any JSON object.
    JsonObject,
    /// JSON that this schema accepts. `oneOf` is taken as `anyOf` where its branches may overlap.
    JsonSchema(Value),
    /// Calls of tools: `<tool_call>{"name": "…", "arguments": {…}}</tool_call>`.
    ToolCalls {
        /// What can be called.
        tools: Vec<Tool>,
        /// What must be called.
        choice: ToolChoice,
    },
}

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_`, `-` and `.`, at most 64.
    pub name: String,
    /// JSON schema of the object of its arguments; `null` means any object.
    pub parameters: Value,
}

/// What an answer with tools must hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// Text, or tool calls if it begins with one.
    Auto,
    /// At least one call of any tool.
    Required,
    /// Exactly one call of this tool.
    Named(String),
}

/// What a tool call begins with.
pub const CALL_BEGIN: &str = "<tool_call>";
/// What it ends with.
pub const CALL_END: &str = "</tool_call>";

/// Largest text of all schemas of an answer, in bytes.
const LARGEST: usize = 64 * 1024;
/// Most values in all schemas of an answer, each name of a property counted too.
const MOST_VALUES: usize = 2048;
/// Deepest nesting of a schema.
const DEEPEST: usize = 48;
/// Most `patternProperties`: each is compared with each.
const MOST_PATTERNS: usize = 16;
/// Most properties where `minProperties` or `maxProperties` is used: each makes a rule of all the others.
const MOST_COUNTED: usize = 32;
/// Most tools of one answer.
const MOST_TOOLS: usize = 128;
/// Most calls in one answer: a small model that cannot stop comes to an end.
const MOST_CALLS: usize = 16;

/// The grammar of a shape.
pub(super) struct Grammar {
    pub grammar: TopLevelGrammar,
    /// What an error of the grammar is about.
    pub place: String,
    /// The answer may also be text.
    pub optional: bool,
}

impl Grammar {
    /// The grammar of `shape`, its schemas checked for size only.
    pub fn of(shape: &Shape) -> Result<Grammar, ConstraintError> {
        let answer = |schema: &Value| -> Result<Grammar, ConstraintError> {
            let place = "the schema";
            let schema = prepared(schema, place, &mut Budget::default())?;
            let start = GrammarWithLexer::from_lark("start: SPACE? @answer\nSPACE: \" \"\n".to_string());
            let answer = GrammarWithLexer {
                name: Some("answer".to_string()),
                json_schema: Some(schema),
                lark_grammar: None,
            };
            let grammar = TopLevelGrammar { grammars: vec![start, answer], max_tokens: None };
            Ok(Grammar { grammar, place: place.to_string(), optional: false })
        };
        match shape {
            Shape::JsonObject => answer(&json!({"type": "object"})),
            Shape::JsonSchema(schema) => answer(schema),
            Shape::ToolCalls { tools, choice } => calls(tools, choice),
        }
    }
}

fn calls(tools: &[Tool], choice: &ToolChoice) -> Result<Grammar, ConstraintError> {
    let refuse = |problem: String| ConstraintError::Schema { place: "the tools".to_string(), problem };
    let chosen: Vec<&Tool> = match choice {
        ToolChoice::Auto | ToolChoice::Required => tools.iter().collect(),
        ToolChoice::Named(name) => tools.iter().filter(|tool| tool.name == *name).take(1).collect(),
    };
    if chosen.is_empty() {
        return Err(refuse(match choice {
            ToolChoice::Named(name) => format!("none is named {name:?}; name one of those that are given"),
            _ => "there are none; give at least one".to_string(),
        }));
    }
    if chosen.len() > MOST_TOOLS {
        return Err(refuse(format!("there are {}; at most {MOST_TOOLS} are possible", chosen.len())));
    }
    let mut budget = Budget::default();
    let mut grammars = Vec::new();
    let mut rules = Vec::new();
    for (index, tool) in chosen.iter().enumerate() {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "_-.".contains(c);
        if tool.name.is_empty() || tool.name.len() > 64 || !tool.name.chars().all(allowed) {
            let problem = "a name has 1 to 64 letters, digits, '_', '-' or '.'";
            return Err(refuse(format!("{:?} cannot be a tool's name; {problem}", tool.name)));
        }
        let place = format!("the parameters of tool {:?}", tool.name);
        let refuse = |problem: String| ConstraintError::Schema { place: place.clone(), problem };
        let mut schema = match &tool.parameters {
            Value::Null => Map::new(),
            Value::Object(schema) => schema.clone(),
            other => return Err(refuse(format!("expected a JSON schema, an object, got {}", kind(other)))),
        };
        match schema.get("type") {
            None => _ = schema.insert("type".to_string(), json!("object")),
            Some(Value::String(kind)) if kind == "object" => {}
            Some(other) => {
                return Err(refuse(format!(
                    "arguments are an object; expected \"type\": \"object\", got {other}"
                )));
            }
        }
        grammars.push(GrammarWithLexer {
            name: Some(format!("arguments_{index}")),
            json_schema: Some(prepared(&Value::Object(schema), &place, &mut budget)?),
            lark_grammar: None,
        });
        rules.push(format!(r#""\"{}\"" COMMA "\"arguments\"" COLON @arguments_{index}"#, tool.name));
    }
    let calls = match choice {
        ToolChoice::Named(_) => "call".to_string(),
        _ => format!("call following{{0,{}}}", MOST_CALLS - 1),
    };
    let lark = format!(
        "start: SPACE? {calls}\n\
         following: LINE? call\n\
         call: \"{CALL_BEGIN}\" LINE? \"{{\" \"\\\"name\\\"\" COLON tool \"}}\" LINE? \"{CALL_END}\"\n\
         tool: {}\n\
         SPACE: \" \"\nLINE: \"\\n\"\nCOMMA: /, ?/\nCOLON: /: ?/\n",
        rules.join("\n    | ")
    );
    grammars.insert(0, GrammarWithLexer::from_lark(lark));
    let place = match chosen.as_slice() {
        [tool] => format!("the parameters of tool {:?}", tool.name),
        _ => "the parameters of the tools".to_string(),
    };
    let grammar = TopLevelGrammar { grammars, max_tokens: None };
    Ok(Grammar { grammar, place, optional: *choice == ToolChoice::Auto })
}

/// The schema with how its JSON is written: on one line, a space allowed after commas and colons. One spelling per
/// string (no `\u0061` for `a`), so that no name can come twice in two spellings.
fn prepared(schema: &Value, place: &str, budget: &mut Budget) -> Result<Value, ConstraintError> {
    let refuse = |problem: String| ConstraintError::Schema { place: place.to_string(), problem };
    let mut schema = match schema {
        Value::Object(_) => schema.clone(),
        Value::Bool(true) => json!({}),
        Value::Bool(false) => {
            return Err(refuse("`false` accepts nothing; give a schema that accepts something".into()));
        }
        other => return Err(refuse(format!("expected a JSON schema, an object, got {}", kind(other)))),
    };
    budget.spend(&schema, 0).map_err(refuse)?;
    JsonCompileOptions {
        item_separator: ", ?".to_string(),
        key_separator: ": ?".to_string(),
        whitespace_flexible: false,
        coerce_one_of: true,
        json_allowed_escapes: Some("nrbtf\\\"".to_string()),
        ..JsonCompileOptions::default()
    }
    .apply_to(&mut schema);
    Ok(schema)
}

/// What the schemas of one answer have used up.
#[derive(Default)]
struct Budget {
    bytes: usize,
    values: usize,
    patterns: usize,
    properties: usize,
    counts_properties: bool,
}

impl Budget {
    fn spend(&mut self, value: &Value, depth: usize) -> Result<(), String> {
        if depth > DEEPEST {
            return Err(format!("it is nested more than {DEEPEST} deep; make it flatter, or use $ref"));
        }
        self.values += 1;
        match value {
            Value::String(text) => self.bytes += text.len() + 2,
            Value::Array(items) => items.iter().try_for_each(|item| self.spend(item, depth + 1))?,
            Value::Object(entries) => {
                for (name, entry) in entries {
                    self.bytes += name.len() + 3;
                    self.values += 1;
                    match (name.as_str(), entry) {
                        ("patternProperties", Value::Object(patterns)) => self.patterns += patterns.len(),
                        ("properties", Value::Object(properties)) => self.properties += properties.len(),
                        ("minProperties" | "maxProperties", _) => self.counts_properties = true,
                        ("const" | "enum", _) if has_control_character(entry) => {
                            return Err(format!(
                                "{name} holds a control character other than \\b, \\f, \\n, \\r and \\t; leave it out"
                            ));
                        }
                        _ => {}
                    }
                    self.spend(entry, depth + 1)?;
                }
            }
            _ => self.bytes += 4,
        }
        if self.bytes > LARGEST || self.values > MOST_VALUES || self.patterns > MOST_PATTERNS {
            return Err(format!(
                "it is too large; possible are {} KiB, {MOST_VALUES} names and values, and {MOST_PATTERNS} \
                 patternProperties, in all tools together",
                LARGEST / 1024
            ));
        }
        if self.counts_properties && self.properties > MOST_COUNTED {
            return Err(format!(
                "minProperties and maxProperties go with at most {MOST_COUNTED} properties in all"
            ));
        }
        Ok(())
    }
}

/// Whether a text in `value` has a character that would have to be written as `\u00…`, which answers never hold.
fn has_control_character(value: &Value) -> bool {
    match value {
        Value::String(text) => text.chars().any(|c| c.is_ascii_control() && !"\u{8}\u{c}\n\r\t".contains(c)),
        Value::Array(items) => items.iter().any(has_control_character),
        Value::Object(entries) => entries.values().any(has_control_character),
        _ => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// What of a grammar's error is for the person who wrote the schema.
pub(super) fn first_line(error: &str) -> String {
    let line = error.lines().next().unwrap_or_default().trim();
    if line.starts_with("panic") || line.is_empty() {
        return "the grammar could not be built; make the schema simpler".to_string();
    }
    line.chars().take(300).collect()
}
