//! Answers of a given form: JSON, JSON of a schema, tool calls.
//!
//! A grammar says which tokens may come next, and a *plan*, kept beside it, is a way to end the answer from where it
//! is. A token is taken only if a plan that fits into the tokens left exists after it; when nothing else fits, the
//! plan is followed. So an answer is whole wherever its budget ends, whatever the model would like to write.

mod calls;
mod json;
mod plan;
mod shape;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use llguidance::{Matcher, ParserFactory, panic_utils};
use strata_data::Tokenizer;
use toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};

pub use calls::{ToolCall, parse_tool_calls};
pub use shape::{CALL_BEGIN, CALL_END, Shape, Tool, ToolChoice};

use json::Json;
use plan::{NoPlan, Place, Plan};
use shape::Grammar;

/// What a constraint can fail with.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConstraintError {
    /// The tokenizer does not allow constraints.
    #[error("this tokenizer cannot write answers of a given form: {problem}")]
    Tokenizer {
        /// What is missing.
        problem: String,
    },
    /// A schema, or the list of tools, cannot be used.
    #[error("{place}: {problem}")]
    Schema {
        /// Which schema: `the schema`, `the parameters of tool "x"` or `the tools`.
        place: String,
        /// What is wrong with it and what to do.
        problem: String,
    },
    /// The logits are not one per token.
    #[error("expected {expected} logits, one per token of the model, got {got}")]
    Logits {
        /// Rows of the model's vocabulary.
        expected: usize,
        /// How many came.
        got: usize,
    },
}

/// How often another token is chosen, when one would leave no room to end the answer, before the plan is followed.
const CHOICES: usize = 4;
/// Most symbols in the rules of a grammar: bounds the time that a schema takes.
const LARGEST_GRAMMAR: usize = 50_000;
/// Longer tokens (of spaces or dashes, in some vocabularies) are never written.
const LONGEST_TOKEN: usize = 256;

/// What grammars need to know of one tokenizer and model. Cloning is cheap.
#[derive(Clone)]
pub struct Grammars {
    inner: Arc<Vocabulary>,
}

impl std::fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Grammars").field("vocab_size", &self.inner.size).finish_non_exhaustive()
    }
}

/// The tokens as grammars see them.
struct Vocabulary {
    factory: ParserFactory,
    env: TokEnv,
    size: usize,
    /// Tokens that end an answer; at least one.
    ends: Vec<u32>,
    /// Tokens of text that contain a quotation mark, by id.
    quotes: Vec<bool>,
}

impl Vocabulary {
    /// The bytes that a token writes, none for special tokens.
    fn bytes(&self, token: u32) -> &[u8] {
        let trie = self.env.tok_trie();
        if (token as usize) < self.size && !trie.is_special_token(token) { trie.token(token) } else { &[] }
    }
}

impl Grammars {
    /// Prepares `tokenizer` for a model of `vocab_size` logits. Takes some milliseconds; do it once per model.
    ///
    /// # Errors
    /// The tokenizer's tokens do not spell the bytes of the text, or none of them ends a text.
    pub fn new(tokenizer: &Tokenizer, vocab_size: usize) -> Result<Grammars, ConstraintError> {
        let refuse = |problem: &str| ConstraintError::Tokenizer { problem: problem.to_string() };
        if !tokenizer.spells_bytes() {
            return Err(refuse(
                "its tokens do not spell the text byte by byte (expected byte-level or SentencePiece)",
            ));
        }
        let known = tokenizer.vocab_size().min(vocab_size) as u32;
        let ends: Vec<u32> = tokenizer.eos_ids().iter().copied().filter(|id| *id < known).collect();
        let Some(end) = ends.first().copied() else {
            return Err(refuse("it has no token that ends a text (eos_token)"));
        };
        let words: Vec<Vec<u8>> = (0..vocab_size as u32)
            .map(|id| {
                if id >= known {
                    return Vec::new();
                }
                if tokenizer.is_special(id) || ends.contains(&id) {
                    // No text contains this byte, so no grammar of text can lead to the token.
                    return [&[TokTrie::SPECIAL_TOKEN_MARKER], format!("<{id}>").as_bytes()].concat();
                }
                let bytes = tokenizer.token_bytes(id);
                if bytes.len() > LONGEST_TOKEN || bytes.contains(&TokTrie::SPECIAL_TOKEN_MARKER) {
                    return Vec::new();
                }
                bytes.to_vec()
            })
            .collect();
        let quotes = words.iter().map(|word| word.contains(&b'"')).collect();
        let build = || {
            let info = TokRxInfo::new(vocab_size as u32, end);
            let trie = TokTrie::from(&info, &words).with_eos_tokens(&ends);
            let env: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
            let mut factory = ParserFactory::new_simple(&env)?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            factory.limits_mut().max_grammar_size = LARGEST_GRAMMAR;
            Ok((factory, env))
        };
        let (factory, env) = panic_utils::catch_unwind(std::panic::AssertUnwindSafe(build))
            .map_err(|error| refuse(&shape::first_line(&format!("{error:#}"))))?;
        let missing = b"{}[]\":,0".iter().find(|byte| env.tok_trie().token_id_at_bytes(&[**byte]).is_none());
        if let Some(byte) = missing {
            return Err(refuse(&format!("it has no token for {:?}", char::from(*byte))));
        }
        Ok(Grammars { inner: Arc::new(Vocabulary { factory, env, size: vocab_size, ends, quotes }) })
    }

    /// The constraint that makes an answer have `shape`, at the beginning of the answer.
    ///
    /// # Errors
    /// [`ConstraintError::Schema`] when a schema or a list of tools is malformed, uses what is not supported, is too
    /// large, or has no short answer.
    pub fn constraint(&self, shape: &Shape) -> Result<Constraint, ConstraintError> {
        let Grammar { grammar, place, optional } = Grammar::of(shape)?;
        let refuse = |problem: String| ConstraintError::Schema { place: place.clone(), problem };
        let parser = self.inner.factory.create_parser(grammar);
        let parser = parser.map_err(|error| refuse(shape::first_line(&format!("{error:#}"))))?;
        let matcher = Matcher::new(Ok(parser));
        let json = Json::default();
        let planned = |strict| plan::shortest(&self.inner, &matcher, Place { json, strict }, plan::LONGEST);
        // A schema may ask for a number longer than what every reader takes; then it is the schema's will.
        let (strict, plan) = match planned(true) {
            Err(NoPlan::Unsound) => (false, planned(false)),
            plan => (true, plan),
        };
        let place = Place { json, strict };
        let plan = plan.map_err(|reason| {
            refuse(match reason {
                NoPlan::Failed => {
                    "it leads nowhere, or to too many alternatives; make it simpler".to_string()
                }
                _ => format!(
                    "no answer of at most {} tokens was found; recursion must be optional, and minLength and \
                     minItems small",
                    plan::LONGEST
                ),
            })
        })?;
        let phase = if optional { Phase::Opening(Vec::new()) } else { Phase::Bound };
        let plan = if optional { Plan::new() } else { plan };
        Ok(Constraint { vocabulary: Arc::clone(&self.inner), matcher: Some(matcher), phase, place, plan })
    }
}

/// Where an answer is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    /// These bytes are written, and it is open whether they become a tool call or text.
    Opening(Vec<u8>),
    /// It is text; nothing is asked of it any more.
    Free,
    /// The grammar holds.
    Bound,
    /// Nothing may follow.
    Complete,
}

/// The form of one answer while it is written: which token may come next.
pub struct Constraint {
    vocabulary: Arc<Vocabulary>,
    /// None after it failed (a limit was reached): then only the plan is left to follow.
    matcher: Option<Matcher>,
    phase: Phase,
    place: Place,
    /// Tokens that end the answer from here, the end token included if one is needed.
    plan: Plan,
}

impl Clone for Constraint {
    /// A constraint that goes its own way; it shares nothing that changes with this one.
    fn clone(&self) -> Constraint {
        Constraint {
            vocabulary: Arc::clone(&self.vocabulary),
            matcher: self.matcher.as_ref().map(Matcher::deep_clone),
            phase: self.phase.clone(),
            place: self.place,
            plan: self.plan.clone(),
        }
    }
}

impl std::fmt::Debug for Constraint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Constraint")
            .field("phase", &self.phase)
            .field("shortest", &self.shortest())
            .finish_non_exhaustive()
    }
}

impl Constraint {
    /// Chooses and writes the next token. The logits of tokens that may not come are set to −∞, `pick` chooses among
    /// the rest, and is asked again where its choice would leave no room to end the answer. `left` is how many tokens
    /// may still be written, this one and the end token included. When [`Constraint::shortest`] is at most `left` at
    /// the beginning, the answer is whole at the end. After [`Constraint::is_complete`] only the end token is chosen.
    ///
    /// # Errors
    /// [`ConstraintError::Logits`] when `logits` is not one per token of the model.
    pub fn choose(
        &mut self,
        logits: &mut [f32],
        left: usize,
        mut pick: impl FnMut(&[f32]) -> u32,
    ) -> Result<u32, ConstraintError> {
        if logits.len() != self.vocabulary.size {
            return Err(ConstraintError::Logits { expected: self.vocabulary.size, got: logits.len() });
        }
        if self.phase == Phase::Free {
            let token = pick(logits);
            self.finish_at_end(token);
            return Ok(token);
        }
        let room = left.saturating_sub(1);
        if self.plan.len() <= room && self.mask(logits) {
            for _ in 0..CHOICES {
                let token = pick(logits);
                // NaN counts as not allowed, as −∞ does.
                let allowed = logits.get(token as usize).is_some_and(|logit| *logit > f32::NEG_INFINITY);
                if !allowed {
                    break;
                }
                if self.take(token, room) {
                    return Ok(token);
                }
                logits[token as usize] = f32::NEG_INFINITY;
            }
        }
        let token = self.follow();
        for (id, logit) in (0u32..).zip(logits.iter_mut()) {
            *logit = if id == token { logit.max(f32::MIN) } else { f32::NEG_INFINITY };
        }
        Ok(token)
    }

    /// True when the answer is whole and nothing may follow: end the sequence.
    pub fn is_complete(&self) -> bool {
        self.phase == Phase::Complete
    }

    /// Tokens that surely suffice to end the answer from here, the end token included where one is needed; 0 while it
    /// may end anywhere. It is short, but not always the least: patterns and choices are not searched through.
    pub fn shortest(&self) -> usize {
        self.plan.len()
    }

    fn finish_at_end(&mut self, token: u32) {
        if self.vocabulary.ends.contains(&token) {
            self.phase = Phase::Complete;
            self.plan.clear();
        }
    }

    /// Masks what the grammar does not allow; false when the grammar has no say any more.
    fn mask(&mut self, logits: &mut [f32]) -> bool {
        let Some(matcher) = &mut self.matcher else { return false };
        if self.phase == Phase::Complete {
            return false;
        }
        let Ok(allowed) = matcher.compute_mask() else {
            self.matcher = None;
            return matches!(self.phase, Phase::Opening(_));
        };
        let vocabulary = &*self.vocabulary;
        if let Phase::Opening(written) = &self.phase {
            let mut bytes = written.clone();
            for (id, logit) in (0u32..).zip(logits) {
                bytes.truncate(written.len());
                bytes.extend_from_slice(vocabulary.bytes(id));
                if may_be_call(&bytes) && !vocabulary.bytes(id).is_empty() && !allowed.is_allowed(id) {
                    *logit = f32::NEG_INFINITY;
                }
            }
            return true;
        }
        let Place { json, strict } = self.place;
        let sound = |id: u32| !strict || json.allows(vocabulary.quotes[id as usize], || vocabulary.bytes(id));
        for (id, logit) in (0u32..).zip(logits) {
            if !(allowed.is_allowed(id) && sound(id)) {
                *logit = f32::NEG_INFINITY;
            }
        }
        true
    }

    /// Writes `token` if a plan of at most `room` tokens exists after it; otherwise nothing changes.
    fn take(&mut self, token: u32, room: usize) -> bool {
        if self.vocabulary.ends.contains(&token) {
            self.finish_at_end(token);
            return true;
        }
        let bytes = self.vocabulary.bytes(token);
        let mut bound = true;
        if let Phase::Opening(written) = &self.phase {
            let written = [written, bytes].concat();
            if bytes.is_empty() || !may_be_call(&written) {
                (self.phase, self.matcher) = (Phase::Free, None);
                return true;
            }
            bound = begins_call(&written);
            if !bound {
                self.phase = Phase::Opening(written);
            }
        }
        let Some(matcher) = &mut self.matcher else { return false };
        if matcher.consume_token(token).is_err() {
            self.matcher = None;
            return false;
        }
        let mut place = self.place;
        place.json.push_all(bytes);
        if !bound {
            self.place = place;
            return true;
        }
        if self.plan.front() == Some(&token) {
            self.plan.pop_front();
        } else if matcher.is_stopped() {
            self.plan.clear();
        } else if !(self.plan.len() <= room && plan::holds(&self.vocabulary, matcher, place, &self.plan)) {
            match plan::shortest(&self.vocabulary, matcher, place, room) {
                Ok(plan) => self.plan = plan,
                Err(_) => {
                    if matcher.rollback(1).is_err() {
                        self.matcher = None;
                    }
                    return false;
                }
            }
        }
        self.place = place;
        self.phase = if self.plan.is_empty() { Phase::Complete } else { Phase::Bound };
        true
    }

    /// Writes the next token of the plan.
    fn follow(&mut self) -> u32 {
        let end = self.vocabulary.ends[0];
        let Some(token) = self.plan.pop_front() else {
            self.finish_at_end(end);
            return end;
        };
        self.place.json.push_all(self.vocabulary.bytes(token));
        let failed = self.matcher.as_mut().is_some_and(|matcher| matcher.consume_token(token).is_err());
        if failed {
            self.matcher = None;
        }
        if self.plan.is_empty() {
            self.phase = Phase::Complete;
        }
        token
    }
}

/// Whether text that begins with `bytes` can be a tool call; it may follow one space.
fn may_be_call(bytes: &[u8]) -> bool {
    let call = CALL_BEGIN.as_bytes();
    let fits = |bytes: &[u8]| call.starts_with(bytes) || bytes.starts_with(call);
    fits(bytes) || bytes.strip_prefix(b" ").is_some_and(fits)
}

/// Whether `bytes` hold all that makes text a tool call.
fn begins_call(bytes: &[u8]) -> bool {
    bytes.strip_prefix(b" ").unwrap_or(bytes).starts_with(CALL_BEGIN.as_bytes())
}
