//! Dialogues as tokens: prompts for generation, and answers with the loss mask for training.

use serde_json::{Map, Value, json};

use super::template::Templates;
use super::{BEGIN, CHAT_TEMPLATE, END, Tokenizer, role_token};
use crate::error::DataError;
use crate::message::{Message, Role};

/// A dialogue as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTokens {
    /// The tokens.
    pub ids: Vec<u32>,
    /// For each token whether it is to be learned: the assistant's words and the token that ends them.
    pub loss_mask: Vec<bool>,
}

/// What a caller may say to a chat template.
#[derive(Debug, Clone, Default)]
pub struct ChatOptions {
    /// One of several templates by its name; without, the default one.
    pub template: Option<String>,
    /// More variables, such as `tools` or `documents`.
    pub variables: Map<String, Value>,
}

/// Ids of our own chat template, which is put together without rendering.
pub(super) struct OwnChat {
    begin: u32,
    end: u32,
    roles: [u32; Role::ALL.len()],
}

impl OwnChat {
    pub fn of(tokenizer: &tokenizers::Tokenizer, templates: &Templates) -> Option<OwnChat> {
        if templates.get(None).ok()?.source() != CHAT_TEMPLATE {
            return None;
        }
        let named =
            |name: &str, token: &str| templates.tokens().get(name).is_some_and(|value| value == token);
        if !named("bos_token", BEGIN) || !named("eos_token", END) {
            return None;
        }
        let mut roles = [0; Role::ALL.len()];
        for (id, role) in roles.iter_mut().zip(Role::ALL) {
            *id = tokenizer.token_to_id(&role_token(role))?;
        }
        Some(OwnChat { begin: tokenizer.token_to_id(BEGIN)?, end: tokenizer.token_to_id(END)?, roles })
    }

    fn role(&self, role: Role) -> u32 {
        self.roles[role as usize]
    }
}

/// A stretch of rendered text; of answers it is known that they are.
struct Piece {
    text: String,
    answer: bool,
}

impl Tokenizer {
    /// The source of the default chat template, if there is one: what it mentions, such as `tools`, it can be given.
    pub fn chat_template(&self) -> Option<&str> {
        self.inner.templates.get(None).ok().map(super::template::ChatTemplate::source)
    }

    /// The text of a dialogue, as the chat template writes it.
    ///
    /// # Errors
    /// [`DataError::Template`]: no template, or what it raised.
    pub fn render_chat(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        options: &ChatOptions,
    ) -> Result<String, DataError> {
        let template = self.inner.templates.get(options.template.as_deref())?;
        let mut variables = self.inner.templates.tokens().clone();
        // Templates ask whether these are none, which is not the same as undefined.
        variables.insert("tools".into(), Value::Null);
        variables.insert("documents".into(), Value::Null);
        variables.insert("messages".into(), json!(messages));
        variables.insert("add_generation_prompt".into(), json!(add_generation_prompt));
        variables.extend(options.variables.clone());
        template.render(&variables)
    }

    /// A dialogue as tokens for training. Its start up to an answer is [`Tokenizer::encode_prompt`] of
    /// the messages before it.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template fails, or writes the start of a dialogue otherwise once
    /// the dialogue goes on: then it cannot be known which tokens are the answer's.
    pub fn encode_chat(&self, messages: &[Message]) -> Result<ChatTokens, DataError> {
        if let Some(own) = &self.inner.own_chat {
            return self.encode_own(own, messages);
        }
        let guard = Guard::new(self, messages, &ChatOptions::default());
        let mut tokens = ChatTokens { ids: Vec::new(), loss_mask: Vec::new() };
        for piece in self.pieces(&guard, false)? {
            let ids = guard.encode(self, &piece.text)?;
            // Some templates write a line feed after the end of a turn, which nobody generates.
            let last_end = ids.iter().rposition(|id| self.eos_ids().contains(id));
            let learned = last_end.map_or(ids.len(), |at| at + 1);
            tokens.loss_mask.extend((0..ids.len()).map(|at| piece.answer && at < learned));
            tokens.ids.extend(ids);
        }
        Ok(tokens)
    }

    /// A dialogue as tokens up to where the assistant is to speak.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template fails.
    pub fn encode_prompt(&self, messages: &[Message]) -> Result<Vec<u32>, DataError> {
        self.encode_prompt_with(messages, &ChatOptions::default())
    }

    /// [`Tokenizer::encode_prompt`] with another template or more variables.
    ///
    /// # Errors
    /// [`DataError::Template`] when the template fails or there is none of that name.
    pub fn encode_prompt_with(
        &self,
        messages: &[Message],
        options: &ChatOptions,
    ) -> Result<Vec<u32>, DataError> {
        if let (Some(own), None | Some("default")) = (&self.inner.own_chat, options.template.as_deref()) {
            let mut ids = self.encode_own(own, messages)?.ids;
            ids.push(own.role(Role::Assistant));
            return Ok(ids);
        }
        let guard = Guard::new(self, messages, options);
        match self.pieces(&guard, true) {
            Ok(pieces) => {
                let mut ids = Vec::new();
                for piece in pieces {
                    ids.extend(guard.encode(self, &piece.text)?);
                }
                Ok(ids)
            }
            // A template that rewrites earlier turns cannot be cut at its answers, but can be used.
            Err(_) => {
                let text = self.render_chat(&guard.messages, true, &guard.options)?;
                guard.encode(self, &text)
            }
        }
    }

    /// [`Tokenizer::encode_prompt_with`] without the oldest turns where that has more than `most` tokens, and how many messages are left out.
    /// What stands first for the system stays, and a conversation is cut before what a user says only: an answer without its question
    /// would mislead. Where even the last of these turns is too long, that is what comes back.
    ///
    /// # Errors
    /// As [`Tokenizer::encode_prompt_with`].
    pub fn encode_prompt_within(
        &self,
        messages: &[Message],
        options: &ChatOptions,
        most: usize,
    ) -> Result<(Vec<u32>, usize), DataError> {
        let whole = self.encode_prompt_with(messages, options)?;
        let first = messages.iter().take_while(|message| message.role == Role::System).count();
        let turns = messages.iter().enumerate().skip(first + 1);
        let turns = turns.filter(|(_, message)| message.role == Role::User);
        let omitted: Vec<usize> = turns.map(|(index, _)| index - first).collect();
        if whole.len() <= most || omitted.is_empty() {
            return Ok((whole, 0));
        }
        let without = |omitted: usize| {
            let rest = messages[..first].iter().chain(&messages[first + omitted..]);
            self.encode_prompt_with(&rest.cloned().collect::<Vec<_>>(), options)
        };
        // Halved again and again: to encode a long conversation once for each of its turns would take minutes.
        let (mut low, mut high) = (0, omitted.len() - 1);
        let mut found = None;
        while low < high {
            let middle = (low + high) / 2;
            let ids = without(omitted[middle])?;
            if ids.len() <= most {
                (high, found) = (middle, Some(ids));
            } else {
                low = middle + 1;
            }
        }
        let ids = found.map_or_else(|| without(omitted[high]), Ok)?;
        Ok((ids, omitted[high]))
    }

    fn encode_own(&self, own: &OwnChat, messages: &[Message]) -> Result<ChatTokens, DataError> {
        let mut tokens = ChatTokens { ids: vec![own.begin], loss_mask: vec![false] };
        for message in messages {
            tokens.ids.push(own.role(message.role));
            tokens.loss_mask.push(false);
            tokens.ids.extend(self.encode_plain(&format!(" {}", message.content))?);
            tokens.ids.push(own.end);
            tokens.loss_mask.resize(tokens.ids.len(), message.role == Role::Assistant);
        }
        Ok(tokens)
    }

    /// Cuts the rendered dialogue where answers start and end. Each piece is encoded on its own, in
    /// training and in use, so that no token reaches over the border in one and not in the other.
    fn pieces(&self, guard: &Guard, add_generation_prompt: bool) -> Result<Vec<Piece>, DataError> {
        let messages = &guard.messages;
        let text = self.render_chat(messages, add_generation_prompt, &guard.options)?;
        let mut pieces = Vec::new();
        let mut done = 0;
        let answers = messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
        for (index, _) in answers {
            let before = self.render_chat(&messages[..index], true, &guard.options)?;
            let after = self.render_chat(&messages[..=index], false, &guard.options)?;
            if !after.starts_with(&before) || !text.starts_with(&after) || before.len() < done {
                let problem = format!(
                    "message {} (the assistant's) cannot be told from what stands before it, because the template \
                     writes earlier turns otherwise once the dialogue goes on; use a template whose text only grows",
                    index + 1
                );
                return Err(DataError::Template { problem });
            }
            pieces.push(Piece { text: text[done..before.len()].to_string(), answer: false });
            pieces.push(Piece { text: text[before.len()..after.len()].to_string(), answer: true });
            done = after.len();
        }
        pieces.push(Piece { text: text[done..].to_string(), answer: false });
        Ok(pieces)
    }
}

/// Keeps what people write from becoming special tokens through a template that mixes both.
///
/// Where a content spells a special token, the first character of the spelling is replaced by a
/// private-use character before rendering and put back after the rendered text is cut at the special
/// tokens that are left, which are the template's own. Other dialogues pass unchanged.
struct Guard {
    messages: Vec<Message>,
    options: ChatOptions,
    /// (stand-in, character) pairs; empty when nothing needed to be replaced.
    replaced: Vec<(char, char)>,
}

impl Guard {
    fn new(tokenizer: &Tokenizer, messages: &[Message], options: &ChatOptions) -> Guard {
        let special = &tokenizer.inner.special;
        let spells = |text: &str| special.iter().any(|(token, _)| text.contains(token.as_str()));
        let mut variables = Value::Object(options.variables.clone());
        let mut risky = messages.iter().any(|message| spells(&message.content));
        for_each_string(&mut variables, &mut |text| risky |= spells(text));
        let mut guard = Guard { messages: messages.to_vec(), options: options.clone(), replaced: Vec::new() };
        if !risky {
            return guard;
        }
        let mut used: Vec<char> = messages.iter().flat_map(|message| message.content.chars()).collect();
        for_each_string(&mut variables, &mut |text| used.extend(text.chars()));
        // Plane 15 is private use from end to end: 65,533 characters, of which few are ever in use.
        let mut free = ('\u{f0000}'..='\u{ffffd}').filter(|stand_in| !used.contains(stand_in));
        for (token, _) in special {
            let Some(first) = token.chars().next() else { continue };
            if guard.replaced.iter().all(|(_, character)| *character != first) {
                let Some(stand_in) = free.next() else { break };
                guard.replaced.push((stand_in, first));
            }
        }
        let pairs = guard.replaced.clone();
        let hide = |text: &mut String| {
            for (token, _) in special {
                let Some(first) = token.chars().next() else { continue };
                let Some((stand_in, _)) = pairs.iter().find(|(_, character)| *character == first) else {
                    continue;
                };
                if text.contains(token.as_str()) {
                    let hidden = format!("{stand_in}{}", &token[first.len_utf8()..]);
                    *text = text.replace(token.as_str(), &hidden);
                }
            }
        };
        for message in &mut guard.messages {
            hide(&mut message.content);
        }
        for_each_string(&mut variables, &mut |text| hide(text));
        if let Value::Object(variables) = variables {
            guard.options.variables = variables;
        }
        guard
    }

    /// Ids of rendered text.
    fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, DataError> {
        if self.replaced.is_empty() {
            return tokenizer.encode(text, false);
        }
        let show = |text: &str| -> String {
            let original =
                |c| self.replaced.iter().find(|(stand_in, _)| *stand_in == c).map_or(c, |(_, c)| *c);
            text.chars().map(original).collect()
        };
        let mut ids = Vec::new();
        let mut rest = text;
        loop {
            let next = tokenizer
                .inner
                .special
                .iter()
                .filter_map(|(token, id)| Some((rest.find(token.as_str())?, token, *id)))
                // The first one; of several at one place the longest, which comes first in the list.
                .min_by_key(|(at, _, _)| *at);
            let Some((at, token, id)) = next else {
                ids.extend(tokenizer.encode_plain(&show(rest))?);
                return Ok(ids);
            };
            ids.extend(tokenizer.encode_plain(&show(&rest[..at]))?);
            ids.push(id);
            rest = &rest[at + token.len()..];
        }
    }
}

fn for_each_string(value: &mut Value, action: &mut impl FnMut(&mut String)) {
    match value {
        Value::String(text) => action(text),
        Value::Array(list) => list.iter_mut().for_each(|value| for_each_string(value, action)),
        Value::Object(object) => object.values_mut().for_each(|value| for_each_string(value, action)),
        _ => {}
    }
}
