//! Tool calls in an answer.

use serde_json::Value;

use super::shape::{CALL_BEGIN, CALL_END};

/// One call of a tool.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Name of the tool; it need not exist.
    pub name: String,
    /// Its arguments, an object.
    pub arguments: Value,
    /// The arguments as JSON text.
    pub arguments_text: String,
}

/// Takes the tool calls out of an answer: the text around them, and the calls. What is not a whole, well-formed call
/// stays text: models that no constraint holds may write anything. Text without calls is given back as it is; else its
/// parts are trimmed and put on lines.
pub fn parse_tool_calls(text: &str) -> (String, Vec<ToolCall>) {
    let mut calls = Vec::new();
    let mut parts = Vec::new();
    // Text from `rest` on is still to be looked at; the part that holds it begins at `part`.
    let (mut part, mut rest) = (text, text);
    while let Some(at) = rest.find(CALL_BEGIN) {
        let begun = &rest[at + CALL_BEGIN.len()..];
        rest = match call(begun) {
            Some((call, after)) => {
                calls.push(call);
                parts.push(part[..part.len() - begun.len() - CALL_BEGIN.len()].trim());
                part = after;
                after
            }
            None => begun,
        };
    }
    if calls.is_empty() {
        return (text.to_string(), calls);
    }
    parts.push(part.trim());
    parts.retain(|part| !part.is_empty());
    (parts.join("\n"), calls)
}

/// The call that `text` begins with, behind its opening mark, and what follows it.
fn call(text: &str) -> Option<(ToolCall, &str)> {
    // The JSON is read first: a string in it may spell the closing mark.
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let mut value = values.next()?.ok()?;
    let after = text[values.byte_offset()..].trim_start().strip_prefix(CALL_END)?;
    let name = value.get("name")?.as_str()?.to_string();
    let arguments = match value.get_mut("arguments").map(Value::take) {
        None | Some(Value::Null) => Value::Object(serde_json::Map::new()),
        Some(Value::Object(arguments)) => Value::Object(arguments),
        // Some models write the object as a string.
        Some(Value::String(text)) => serde_json::from_str(&text).ok().filter(Value::is_object)?,
        Some(_) => return None,
    };
    let arguments_text = arguments.to_string();
    Some((ToolCall { name, arguments, arguments_text }, after))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn calls_are_taken_out_and_text_is_kept() {
        let text = "Let me see.\n<tool_call>\n{\"name\": \"a\", \"arguments\": {\"z\": \"</tool_call>\", \"b\": 1}}\n\
                    </tool_call>\n<tool_call>{\"name\":\"b\"}</tool_call> Done.";
        let (rest, calls) = parse_tool_calls(text);
        assert_eq!(rest, "Let me see.\nDone.");
        let seen: Vec<(&str, &str)> =
            calls.iter().map(|call| (call.name.as_str(), call.arguments_text.as_str())).collect();
        assert_eq!(seen, [("a", "{\"z\":\"</tool_call>\",\"b\":1}"), ("b", "{}")]);
    }

    #[test]
    fn broken_calls_stay_text() {
        for text in [
            "<tool_call>{\"name\": \"a\", \"arguments\": {}}",
            "<tool_call>{\"name\": \"a\", \"arguments\": {</tool_call>",
            "<tool_call>{\"arguments\": {}}</tool_call>",
            "<tool_call>{\"name\": \"a\", \"arguments\": [1]}</tool_call>",
            "<tool_call>",
            " plain ",
        ] {
            assert_eq!(parse_tool_calls(text), (text.to_string(), vec![]));
        }
        let (rest, calls) = parse_tool_calls("<tool_call><tool_call>{\"name\": \"a\"}</tool_call>");
        assert_eq!((rest.as_str(), calls.len()), ("<tool_call>", 1));
    }

    proptest! {
        #[test]
        fn any_text_is_parsed(parts in proptest::collection::vec(proptest::sample::select(vec![
            "<tool_call>", "</tool_call>", "{\"name\": \"a\", \"arguments\": {}}", "{", "é", " ", "\"",
        ]), 0..12)) {
            let text = parts.concat();
            let (rest, calls) = parse_tool_calls(&text);
            prop_assert!(rest.len() + calls.len() <= text.len());
        }
    }
}
