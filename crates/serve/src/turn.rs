//! Turns of a conversation, as all APIs mean them.

use serde_json::{Value, json};
use strata_data::{Message, Role};
use strata_generate::{CALL_BEGIN, CALL_END};

/// A turn of a conversation.
#[derive(Debug, Clone)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub text: String,
    /// What the assistant asked to be called.
    pub calls: Vec<Called>,
    /// The call that a tool's turn answers: its id, or what was called, as far as that is said.
    pub answers: Option<Called>,
}

/// A call of a tool that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Called {
    /// A name of its own, where it has one.
    pub id: Option<String>,
    /// What was called; empty where only the id is known.
    pub name: String,
    /// With what, as JSON.
    pub arguments: String,
}

impl Called {
    /// One of which only the id is known.
    pub fn by_id(id: String) -> Called {
        Called { id: Some(id), name: String::new(), arguments: String::new() }
    }

    /// With an id of its own, as the OpenAI API says it.
    fn for_openai(&self, id: &str) -> Value {
        let function = json!({"name": self.name, "arguments": self.arguments});
        json!({"id": id, "type": "function", "function": function})
    }
}

impl Turn {
    /// A turn of words only.
    pub fn new(role: Role, text: impl Into<String>) -> Turn {
        Turn { role, text: text.into(), calls: Vec::new(), answers: None }
    }

    /// About as many bytes as its prompt has.
    pub fn bytes(&self) -> usize {
        let calls = self.calls.iter().map(|call| call.name.len() + call.arguments.len());
        self.text.len() + 16 + calls.sum::<usize>()
    }

    /// As models of this machine read it: calls stand in the text, as these models write them.
    pub fn message(&self) -> Message {
        let mut text = self.text.clone();
        for Called { name, arguments, .. } in &self.calls {
            text +=
                &format!("{CALL_BEGIN}{{\"name\": {}, \"arguments\": {arguments}}}{CALL_END}", json!(name));
        }
        Message::new(self.role, text)
    }
}

/// As servers of the OpenAI API read them: there every call has an id, and every result names that of a call before it.
pub fn for_openai(turns: &[Turn]) -> Vec<Value> {
    let mut messages = Vec::with_capacity(turns.len());
    let mut made = 0;
    let mut id_of = |called: &Called| {
        called.id.clone().unwrap_or_else(|| {
            made += 1;
            format!("call_{made}")
        })
    };
    // Calls without a result so far.
    let mut waiting: Vec<(String, &Called)> = Vec::new();
    for turn in turns {
        let mut message = json!({"role": turn.role, "content": turn.text});
        if !turn.calls.is_empty() {
            waiting = turn.calls.iter().map(|called| (id_of(called), called)).collect();
            message["tool_calls"] = waiting.iter().map(|(id, called)| called.for_openai(id)).collect();
            if turn.text.is_empty() {
                message["content"] = Value::Null;
            }
        }
        if turn.role == Role::Tool {
            let answers = turn.answers.as_ref();
            let matching = waiting.iter().position(|(id, called)| match answers {
                Some(Called { id: Some(answered), .. }) => id == answered,
                // Version 1 of Cohere's API knows no ids and repeats the call.
                Some(Called { name, arguments, .. }) => {
                    called.name == *name && called.arguments == *arguments
                }
                None => true,
            });
            let id = match (matching, answers) {
                (Some(at), _) => waiting.remove(at).0,
                (None, Some(called)) => {
                    let id = id_of(called);
                    if called.id.is_none() {
                        let call = [called.for_openai(&id)];
                        messages.push(json!({"role": "assistant", "content": null, "tool_calls": call}));
                    }
                    id
                }
                (None, None) => String::new(),
            };
            message["tool_call_id"] = json!(id);
        }
        messages.push(message);
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(id: Option<&str>, name: &str) -> Called {
        Called { id: id.map(Into::into), name: name.into(), arguments: "{\"n\": 1}".into() }
    }

    fn calling(calls: &[Called]) -> Turn {
        Turn { calls: calls.to_vec(), ..Turn::new(Role::Assistant, "") }
    }

    fn result(of: Called) -> Turn {
        Turn { answers: Some(of), ..Turn::new(Role::Tool, "7") }
    }

    /// Ids of calls, by name, and of results.
    fn ids(turns: &[Turn]) -> (Vec<(String, String)>, Vec<String>) {
        let (mut calls, mut results) = (Vec::new(), Vec::new());
        for message in for_openai(turns) {
            for call in message["tool_calls"].as_array().into_iter().flatten() {
                let text = |value: &Value| value.as_str().unwrap().to_string();
                calls.push((text(&call["function"]["name"]), text(&call["id"])));
            }
            results.extend(message["tool_call_id"].as_str().map(str::to_string));
        }
        (calls, results)
    }

    #[test]
    fn calls_are_written_out_for_models_of_this_machine() {
        let text = calling(&[call(Some("a"), "find")]).message().content;
        assert_eq!(text, r#"<tool_call>{"name": "find", "arguments": {"n": 1}}</tool_call>"#);
    }

    #[test]
    fn results_name_the_calls_that_they_answer() {
        let by_id = |id: &str| result(Called::by_id(id.into()));
        let turns = [calling(&[call(Some("a"), "f"), call(Some("b"), "g")]), by_id("b"), by_id("a")];
        assert_eq!(ids(&turns).1, ["b", "a"]);
        assert_eq!(for_openai(&turns)[0]["content"], Value::Null);
    }

    #[test]
    fn results_without_ids_find_their_calls_in_any_order_and_not_those_of_earlier_turns() {
        let (f, g) = (call(None, "f"), call(None, "g"));
        let unanswered = calling(std::slice::from_ref(&f));
        let turns = [unanswered, calling(&[f.clone(), g.clone()]), result(g), result(f)];
        let (calls, results) = ids(&turns);
        assert_eq!(results, [calls[2].1.as_str(), calls[1].1.as_str()]);
        assert_ne!(calls[0].1, calls[1].1);
    }

    #[test]
    fn a_result_whose_call_nobody_made_brings_it_along() {
        let turns = [Turn::new(Role::User, "How many?"), result(call(None, "f"))];
        let messages = for_openai(&turns);
        assert_eq!((&messages[1]["role"], &messages[2]["role"]), (&json!("assistant"), &json!("tool")));
        assert_eq!(messages[1]["tool_calls"][0]["id"], messages[2]["tool_call_id"]);
        assert_eq!(messages[1]["tool_calls"][0]["function"]["name"], "f");
    }
}
