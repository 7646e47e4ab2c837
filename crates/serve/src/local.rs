//! A model of this machine: its folder opened, its engine running, requests turned into tokens and back.

use std::path::Path;
use std::sync::Arc;
use std::sync::OnceLock;

use serde_json::{Map, Value, json};
use strata_data::tokenizer::ChatOptions;
use strata_data::{Message, Role, Tokenizer};
use strata_generate::engine::{Engine, Event, Events, Finished, Reason, Request, Settings, Token};
use strata_generate::{CALL_BEGIN, Grammars, Limits, Sampling, parse_tool_calls};
use strata_model::{Decoder, Inference, Lineage, WeightFormat};
use strata_tensor::Cpu;

use crate::ask::{
    Ask, AskUsage, AskedSampling, AskedTool, Asker, End, EndReason, Piece, Prompt, ReadPrompt, Text,
    TextPiece, TokenPiece, Truncate,
};
use crate::error::ApiError;
use crate::turn::Turn;
use crate::unfinished::Unfinished;

/// A model of this machine, ready to answer.
#[derive(Debug)]
pub struct LocalModel {
    tokenizer: Tokenizer,
    engine: Engine,
    grammars: OnceLock<Result<Grammars, String>>,
    context: usize,
    vocab_size: usize,
    /// Tokens that end an answer.
    stop: Vec<u32>,
    /// Whether it is a base model of ours, which continues text and knows no turns.
    base: bool,
    ours: bool,
    defaults: AskedSampling,
}

impl LocalModel {
    /// Opens the model in `folder`, its weights held in the given form, and starts its engine. This takes a while.
    ///
    /// # Errors
    /// What is wrong with the folder, as text.
    pub fn open(
        folder: &Path,
        cpu: &Cpu,
        settings: Settings,
        weights: WeightFormat,
    ) -> Result<LocalModel, String> {
        let lineage = Lineage::load(folder).map_err(|error| error.to_string())?;
        let decoder = Decoder::load(folder).map_err(|error| error.to_string())?;
        let tokenizer = Tokenizer::load(folder).map_err(|error| error.to_string())?;
        let config = decoder.config();
        let (context, vocab_size) = (config.context(), config.vocab_size);
        let mut stop = tokenizer.eos_ids().to_vec();
        stop.extend(&config.eos);
        stop.sort_unstable();
        stop.dedup();
        let threads = |error| format!("starting the engine's threads: {error}");
        // Threads of its own, as those of `cpu` may be at work for another model, and work for one caller at a time.
        let loading = Cpu::new(cpu.isa(), cpu.threads()).map_err(threads)?;
        let model = Inference::with_format(decoder, &loading, weights);
        drop(loading);
        let engine = Engine::start(model, tokenizer.clone(), cpu.clone(), settings).map_err(threads)?;
        Ok(LocalModel {
            tokenizer,
            engine,
            grammars: OnceLock::new(),
            context,
            vocab_size,
            stop,
            base: lineage.as_ref().is_some_and(|lineage| lineage.stage == "base"),
            ours: lineage.is_some(),
            defaults: sampling_defaults(folder),
        })
    }

    /// The model's tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The model's engine.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Begins to answer. This encodes the prompt, so it belongs on a thread that may be busy for a while.
    ///
    /// # Errors
    /// The request does not fit the model, or the engine is too busy.
    pub fn ask(self: &Arc<Self>, ask: &Ask, asker: Asker) -> Result<LocalAnswers, ApiError> {
        let answer = matches!(ask.prompt, Prompt::Chat { .. });
        let (mut prompts, omitted) = self.encode(ask)?;
        let cut = prompts.iter_mut().map(|prompt| self.fit(prompt, ask)).collect::<Result<Vec<_>, _>>()?;
        if let Some((token, _)) = ask.bias.iter().find(|(token, _)| *token as usize >= self.vocab_size) {
            let problem = format!("the model's vocabulary has {} tokens", self.vocab_size);
            return Err(ApiError::field(format!("logit_bias.{token}"), problem));
        }
        let bias: Arc<[(u32, f32)]> = ask.bias.as_slice().into();
        let constraint = match ask.shape() {
            None => None,
            Some(shape) => {
                let constraint = self.grammars()?.constraint(&shape);
                let field = if ask.calls_tools() { "tools" } else { ask.fields.format };
                Some(constraint.map_err(|error| ApiError::field(field, error))?)
            }
        };
        let unfinished = Unfinished::new(prompts.iter().map(Vec::len).collect(), ask.count);
        let mut requests = Vec::with_capacity(prompts.len() * ask.count);
        for prompt in prompts {
            let room = self.context - prompt.len();
            let max_tokens = ask.max_tokens.unwrap_or(room).min(room);
            if let Some(shortest) = constraint.as_ref().map(|constraint| constraint.shortest())
                && shortest > max_tokens
            {
                let problem = format!(
                    "an answer of this form has at least {shortest} tokens, {max_tokens} are allowed"
                );
                return Err(match max_tokens < room {
                    true => ApiError::field(ask.fields.max_tokens, problem),
                    false => ApiError::context(ask.fields.prompt, problem),
                });
            }
            let request = Request {
                prompt,
                limits: Limits { max_tokens, stop: self.stop.clone() },
                stop_strings: ask.stop.clone(),
                sampling: self.sampling(&ask.sampling, &ask.fallback),
                bias: bias.clone(),
                answer,
                constraint: constraint.clone(),
                log_probabilities: ask.log_probabilities,
                prompt_log_probabilities: ask.prompt_log_probabilities.is_some(),
                client: asker.client,
                deadline: Some(asker.deadline),
            };
            requests.extend(std::iter::repeat_n(request, ask.count));
        }
        let filters = requests.iter().map(|_| ToolFilter { waiting: ask.calls_tools(), held: String::new() });
        let filters = filters.collect();
        let events = self.engine.submit(requests)?;
        // What stands before a text that was sent is not part of it.
        let hidden = match &ask.prompt {
            Prompt::Texts(texts) if ask.prompt_log_probabilities.is_some() => {
                let beginning =
                    self.beginning().map_err(|error| ApiError::field(ask.fields.prompt, error))?;
                let before = |(text, cut): (&Text, &usize)| match text {
                    Text::Plain(_) => beginning.len().saturating_sub(*cut),
                    Text::Tokens(_) => 0,
                };
                let each = texts.iter().zip(&cut).map(before);
                each.flat_map(|hidden| std::iter::repeat_n(hidden, ask.count)).collect()
            }
            _ => Vec::new(),
        };
        let buffer = Vec::new();
        Ok(LocalAnswers { model: self.clone(), events, filters, buffer, omitted, unfinished, hidden })
    }

    /// Tokens of the prompts, and how many messages were left out for want of room.
    fn encode(&self, ask: &Ask) -> Result<(Vec<Vec<u32>>, usize), ApiError> {
        let field = ask.fields.prompt;
        let wrong = |error: strata_data::DataError| ApiError::field(field, error);
        match &ask.prompt {
            Prompt::Chat { messages, documents } if !self.base => {
                let (messages, options) = self.with_context(messages, documents, ask)?;
                if ask.truncate != Truncate::Turns {
                    let prompt = self.tokenizer.encode_prompt_with(&messages, &options).map_err(wrong)?;
                    return Ok((vec![prompt], 0));
                }
                // As much room as is asked for, but no more than half of the context.
                let room = ask.max_tokens.unwrap_or(self.context / 4).clamp(1, (self.context / 2).max(1));
                let most = self.context.saturating_sub(room);
                let (prompt, omitted) =
                    self.tokenizer.encode_prompt_within(&messages, &options, most).map_err(wrong)?;
                Ok((vec![prompt], omitted))
            }
            // A base model knows no turns: it goes on with what was said.
            Prompt::Chat { messages, .. } => {
                let texts: Vec<String> = messages.iter().map(|turn| turn.message().content).collect();
                Ok((vec![self.encode_text(&texts.join("\n")).map_err(wrong)?], 0))
            }
            Prompt::Texts(texts) => texts
                .iter()
                .map(|text| match text {
                    Text::Plain(text) => self.encode_text(text).map_err(wrong),
                    Text::Tokens(ids) => match ids.iter().find(|id| **id as usize >= self.vocab_size) {
                        Some(id) => {
                            let problem =
                                format!("token {id} is outside the vocabulary of {}", self.vocab_size);
                            Err(ApiError::field(field, problem))
                        }
                        None => Ok(ids.clone()),
                    },
                })
                .collect::<Result<_, _>>()
                .map(|prompts| (prompts, 0)),
        }
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, strata_data::DataError> {
        let mut ids = self.tokenizer.encode_plain(text)?;
        ids.splice(0..0, self.beginning()?);
        Ok(ids)
    }

    /// Tokens before every text.
    fn beginning(&self) -> Result<Vec<u32>, strata_data::DataError> {
        // Our base models saw every document after its beginning; others are asked what they put before a text.
        match self.tokenizer.bos_id() {
            Some(bos) if self.ours => Ok(vec![bos]),
            _ => self.tokenizer.encode("", true),
        }
    }

    /// Checks the length of a prompt, or cuts it where the request allows it. Returns how many tokens its beginning lost.
    fn fit(&self, prompt: &mut Vec<u32>, ask: &Ask) -> Result<usize, ApiError> {
        if prompt.is_empty() {
            return Err(ApiError::field(ask.fields.prompt, "it has no tokens; give some text"));
        }
        // At least one token can be written after it.
        let most = self.context - 1;
        if prompt.len() > most {
            let wanted = kept_of_a_long_prompt(self.context, ask.max_tokens.unwrap_or(0));
            match ask.truncate {
                Truncate::No | Truncate::Turns if !self.base || ask.truncate == Truncate::No => {
                    let problem = format!(
                        "it has {} tokens, and the model's context of {} must have room for an answer too; shorten it",
                        prompt.len(),
                        self.context
                    );
                    return Err(ApiError::context(ask.fields.prompt, problem));
                }
                // A base model reads a conversation as one text.
                Truncate::No | Truncate::Turns | Truncate::Start => {
                    return Ok(prompt.drain(..prompt.len() - wanted).len());
                }
                Truncate::End => prompt.truncate(wanted),
            }
        }
        Ok(0)
    }

    /// Tells the model of documents and tools: through its template where that knows them, else in words.
    fn with_context(
        &self,
        turns: &[Turn],
        documents: &[Value],
        ask: &Ask,
    ) -> Result<(Vec<Message>, ChatOptions), ApiError> {
        let template = self.tokenizer.chat_template().ok_or_else(|| {
            ApiError::field("model", "it has no chat template; ask it to continue a text (/v1/completions)")
        })?;
        let mut variables = Map::new();
        let mut words = String::new();
        if !documents.is_empty() {
            if template.contains("documents") {
                variables.insert("documents".into(), json!(documents));
            } else {
                words += "Documents:\n";
                for document in documents {
                    words += &format!("{}\n", document_text(document));
                }
            }
        }
        if ask.calls_tools() {
            let tools: Vec<Value> = ask.tools.iter().map(AskedTool::for_openai).collect();
            if template.contains("tools") {
                variables.insert("tools".into(), json!(tools));
            } else {
                words += "Tools you may call by writing <tool_call>{\"name\": ..., \"arguments\": ...}</tool_call>:\n";
                for tool in &tools {
                    words += &format!("{}\n", tool["function"]);
                }
            }
        }
        let mut messages: Vec<Message> = turns.iter().map(Turn::message).collect();
        if !words.is_empty() {
            match messages.first_mut() {
                Some(first) if first.role == Role::System => {
                    first.content = format!("{}\n\n{words}", first.content)
                }
                _ => messages.insert(0, Message::new(Role::System, words)),
            }
        }
        Ok((messages, ChatOptions { template: None, variables }))
    }

    fn grammars(&self) -> Result<&Grammars, ApiError> {
        let made = self.grammars.get_or_init(|| {
            Grammars::new(&self.tokenizer, self.vocab_size).map_err(|error| error.to_string())
        });
        made.as_ref()
            .map_err(|problem| ApiError::field("model", format!("it cannot be constrained: {problem}")))
    }

    fn sampling(&self, asked: &AskedSampling, fallback: &AskedSampling) -> Sampling {
        let defaults = &self.defaults;
        Sampling {
            temperature: asked.temperature.or(defaults.temperature).or(fallback.temperature).unwrap_or(1.0),
            top_k: asked.top_k.or(defaults.top_k).or(fallback.top_k).unwrap_or(0),
            top_p: asked.top_p.or(defaults.top_p).or(fallback.top_p).unwrap_or(1.0),
            seed: asked.seed.unwrap_or_else(rand::random),
            frequency_penalty: asked.frequency_penalty,
            presence_penalty: asked.presence_penalty,
        }
    }
}

/// A document as lines of a prompt: `title: …`, `text: …`.
fn document_text(document: &Value) -> String {
    let Some(fields) = document.as_object() else { return document.to_string() };
    let line = |(key, value): (&String, &Value)| match value.as_str() {
        Some(text) => format!("{key}: {text}"),
        None => format!("{key}: {value}"),
    };
    fields.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// What `generation_config.json` says of sampling; ours say greedy.
fn sampling_defaults(folder: &Path) -> AskedSampling {
    let text = std::fs::read_to_string(folder.join("generation_config.json")).unwrap_or_default();
    let config: Value = serde_json::from_str(&text).unwrap_or_default();
    if config["do_sample"] == json!(false) {
        return AskedSampling { temperature: Some(0.0), ..AskedSampling::default() };
    }
    AskedSampling {
        temperature: config["temperature"].as_f64().map(|value| value as f32),
        top_p: config["top_p"].as_f64().map(|value| value as f32),
        top_k: config["top_k"].as_u64().map(|value| value as usize),
        ..AskedSampling::default()
    }
}

/// From so many answers at one time on, sending every token by itself takes more of the machine than making it.
const CROWD: usize = 8;

/// Answers of an engine of this process as they come.
#[derive(Debug)]
pub struct LocalAnswers {
    model: Arc<LocalModel>,
    events: Events,
    filters: Vec<ToolFilter>,
    buffer: Vec<(usize, Event)>,
    omitted: usize,
    unfinished: Unfinished,
    /// Tokens of each answer's prompt that were not sent with it, where prompts are told.
    hidden: Vec<usize>,
}

impl LocalAnswers {
    /// Messages that were left out for want of room.
    pub fn omitted(&self) -> usize {
        self.omitted
    }

    /// What those that have not ended took so far.
    pub fn unfinished(&self) -> AskUsage {
        self.unfinished.usage()
    }

    /// Whether so many are being answered that each had better be sent several tokens at a time.
    pub fn is_crowded(&self) -> bool {
        self.model.engine.counters().running.load(std::sync::atomic::Ordering::Relaxed) >= CROWD
    }

    /// Waits until one of the answers has ended.
    pub async fn an_end(&self) {
        self.events.an_end().await;
    }

    /// The next parts, from at most `most` tokens; none when all answers have ended.
    pub async fn next(&mut self, most: usize) -> Vec<(usize, Piece)> {
        let mut pieces = Vec::new();
        // What comes may all be held back.
        while pieces.is_empty() {
            if self.events.take_into(&mut self.buffer, most).await == 0 {
                break;
            }
            for (index, event) in self.buffer.drain(..) {
                let filter = &mut self.filters[index];
                match event {
                    Event::Token(mut token) => {
                        self.unfinished.token(index);
                        let text = filter.pass(std::mem::take(&mut token.text));
                        let piece = TextPiece { text, token: token_piece(&self.model.tokenizer, token) };
                        if !piece.text.is_empty() || piece.token.is_some() {
                            pieces.push((index, Piece::Text(piece)));
                        }
                    }
                    Event::Prompt(tokens) => {
                        let hidden = self.hidden.get(index).copied().unwrap_or(0);
                        pieces.push((index, Piece::Read(read(&self.model.tokenizer, tokens, hidden))));
                    }
                    Event::Finished(finished) => {
                        self.unfinished.end(index);
                        pieces.extend(filter.end(finished).into_iter().map(|piece| (index, piece)));
                    }
                    Event::Failed(problem) => {
                        let end =
                            End { reason: EndReason::Failed(problem), usage: self.unfinished.end(index) };
                        pieces.push((index, Piece::End(end)));
                    }
                }
            }
        }
        pieces
    }
}

/// A prompt that was read, without the `hidden` tokens at its beginning.
fn read(tokenizer: &Tokenizer, tokens: Vec<Token>, hidden: usize) -> ReadPrompt {
    let mut read = ReadPrompt::default();
    for token in tokens.into_iter().skip(hidden) {
        let id = token.id;
        match token_piece(tokenizer, token) {
            Some(token) => read.rest.push(token),
            None => read.first = Some(tokenizer.token_bytes(id).to_vec()),
        }
    }
    read
}

fn token_piece(tokenizer: &Tokenizer, token: Token) -> Option<TokenPiece> {
    Some(TokenPiece {
        log_probability: token.log_probability?,
        id: token.id,
        bytes: tokenizer.token_bytes(token.id).to_vec(),
        alternatives: token
            .alternatives
            .into_iter()
            .map(|(id, log_probability)| (tokenizer.token_bytes(id).to_vec(), log_probability))
            .collect(),
    })
}

/// Tells an answer from calls of tools: text that begins like a call is held back until the end.
#[derive(Debug)]
struct ToolFilter {
    waiting: bool,
    held: String,
}

impl ToolFilter {
    fn pass(&mut self, text: String) -> String {
        if !self.waiting {
            return text;
        }
        self.held += &text;
        let begun = self.held.trim_start();
        if begun.starts_with(CALL_BEGIN) || CALL_BEGIN.starts_with(begun) {
            return String::new();
        }
        self.waiting = false;
        std::mem::take(&mut self.held)
    }

    fn end(&mut self, finished: Finished) -> Vec<Piece> {
        let mut text = self.pass(finished.text);
        let mut calls = Vec::new();
        if !self.held.is_empty() {
            let (before, found) = parse_tool_calls(&std::mem::take(&mut self.held));
            text += &before;
            calls = found;
        }
        let mut reason = match finished.reason {
            Reason::Stop => EndReason::Stop,
            Reason::StopString(stop) => EndReason::StopString(stop),
            Reason::Length => EndReason::Length,
            Reason::Timeout => EndReason::Timeout,
        };
        let mut pieces = Vec::new();
        if !text.is_empty() {
            pieces.push(Piece::Text(TextPiece { text, token: None }));
        }
        if !calls.is_empty() {
            if reason == EndReason::Stop {
                reason = EndReason::ToolCalls;
            }
            pieces.push(Piece::ToolCalls(calls));
        }
        let usage = AskUsage {
            prompt: finished.usage.prompt_tokens,
            cached: finished.usage.cached_tokens,
            completion: finished.usage.completion_tokens,
        };
        pieces.push(Piece::End(End { reason, usage }));
        pieces
    }
}

/// Tokens that stay of a prompt longer than the context where it may be cut: what an answer of `max_tokens` leaves, but half
/// of the context at least, since an answer to next to nothing helps nobody.
fn kept_of_a_long_prompt(context: usize, max_tokens: usize) -> usize {
    (context - 1).saturating_sub(max_tokens).max(context / 2).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_that_is_cut_keeps_half_of_the_context_however_long_an_answer_is_wanted() {
        assert_eq!(kept_of_a_long_prompt(512, 0), 511);
        assert_eq!(kept_of_a_long_prompt(512, 100), 411);
        assert_eq!([511, 512, usize::MAX].map(|tokens| kept_of_a_long_prompt(512, tokens)), [256; 3]);
        assert_eq!(kept_of_a_long_prompt(2, 9), 1);
    }
}
