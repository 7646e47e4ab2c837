//! One request to a model, from its admission to the line in the log.

use std::time::Instant;

use crate::app::{Client, Shared};
use crate::ask::{Answers, Ask, AskUsage, Asker, Choice, End, EndReason, Format, Piece, Prompt, Text, Whole};
use crate::error::ApiError;
use crate::metrics::Outcome;

/// A request that is being answered. Dropping it cancels what is not finished, and accounts for it.
#[derive(Debug)]
pub struct Session {
    app: Shared,
    client: Client,
    model: String,
    answers: Answers,
    /// Answers to each prompt, and all that have not ended.
    count: usize,
    open: usize,
    usage: AskUsage,
    since: Instant,
    first: Option<Instant>,
    /// Whether every answer reads its prompt to tell it.
    reads_each: bool,
    /// Answers whose prompt is to be told and was not yet.
    unread: Vec<bool>,
    /// When each answer got its last token.
    last: Vec<Option<Instant>>,
    outcome: Outcome,
    /// The request, for the log: a stream ends long after its handler.
    span: tracing::Span,
    /// What was written, where the operator wants to read it.
    written: Option<String>,
}

impl Session {
    /// Lets `client` ask the model called `model`.
    ///
    /// # Errors
    /// There is no such model, the request does not fit it, the client asks too much, or everyone does.
    pub async fn begin(
        app: &Shared,
        client: &Client,
        model: &str,
        mut ask: Ask,
    ) -> Result<Session, ApiError> {
        let since = Instant::now();
        check(app, &mut ask)?;
        // Before a model is loaded, for which another may have to go.
        app.limit(client, since).inspect_err(|_| {
            // The names of models that there are not would be without end.
            if app.catalog.knows(model) {
                app.metrics.request(model, Outcome::Refused);
            }
        })?;
        let (count, open) = (ask.count, ask.prompt.count() * ask.count);
        let reads_each = ask.prompt_log_probabilities.is_some();
        let mut beginning = Beginning { app, client, model, since, given_up: true };
        let begun = beginning.answers(ask).await;
        beginning.given_up = false;
        let answers = begun?;
        Ok(Session {
            app: app.clone(),
            client: client.clone(),
            model: model.to_string(),
            answers,
            count,
            open,
            usage: AskUsage::default(),
            since,
            first: None,
            reads_each,
            unread: vec![reads_each; open],
            last: vec![None; open],
            outcome: Outcome::Cancelled,
            span: tracing::Span::current(),
            written: app.log_content.then(String::new),
        })
    }

    /// Whether so many are being answered that each had better be sent several tokens at a time.
    pub fn is_crowded(&self) -> bool {
        self.answers.is_crowded()
    }

    /// Waits until one of the answers has ended.
    pub async fn an_end(&self) {
        self.answers.an_end().await;
    }

    /// Messages that were left out for want of room.
    pub fn omitted(&self) -> usize {
        self.answers.omitted()
    }

    /// Whether all answers have ended.
    pub fn is_done(&self) -> bool {
        self.open == 0
    }

    /// How many have not.
    pub fn open(&self) -> usize {
        self.open
    }

    /// The next parts, each with the index of its answer; none when all answers have ended. Where the engine stops
    /// without a word, the request ends with a failure.
    pub async fn next(&mut self) -> Vec<(usize, Piece)> {
        if self.open == 0 {
            return Vec::new();
        }
        let mut pieces = self.answers.next().await;
        if pieces.is_empty() {
            // Which of several answers have ended is not of interest any more: a failure ends the whole request.
            let reason =
                EndReason::Failed("the engine stopped before the answer was whole; try again".into());
            pieces.push((0, Piece::End(End { reason, usage: AskUsage::default() })));
            self.open = 1;
        }
        let now = Instant::now();
        self.measure(&pieces, now);
        for (index, piece) in &mut pieces {
            match piece {
                Piece::End(end) => {
                    self.open -= 1;
                    // The prompt of several answers counts once, unless each reads it anew.
                    let prompt = match index.is_multiple_of(self.count) || self.reads_each {
                        true => end.usage,
                        false => AskUsage { prompt: 0, cached: 0, ..end.usage },
                    };
                    self.usage += prompt;
                    match &end.reason {
                        // Without its numbers a prompt would count as certain.
                        EndReason::Timeout if self.unread.get(*index) == Some(&true) => {
                            self.outcome = Outcome::TimedOut;
                            end.reason = EndReason::Failed(ApiError::nothing_in_time().message().into());
                        }
                        EndReason::Failed(problem) => {
                            self.span.in_scope(|| {
                                tracing::error!(model = self.model, problem, "an answer failed");
                            });
                            self.outcome = Outcome::Failed;
                        }
                        EndReason::Timeout if self.outcome != Outcome::Failed => {
                            self.outcome = Outcome::TimedOut;
                        }
                        // The worst of several answers is told.
                        _ if self.open == 0 && self.outcome == Outcome::Cancelled => {
                            self.outcome = Outcome::Answered;
                        }
                        _ => {}
                    }
                }
                Piece::Text(text) => {
                    if let Some(written) = &mut self.written {
                        written.push_str(&text.text);
                    }
                }
                Piece::Read(_) => {
                    if let Some(unread) = self.unread.get_mut(*index) {
                        *unread = false;
                    }
                }
                Piece::ToolCalls(calls) => {
                    if let Some(written) = &mut self.written {
                        written.push_str(&format!("{calls:?}"));
                    }
                }
            }
        }
        pieces
    }

    /// Notes when tokens came. Those of an answer that came together share the time since the ones before.
    fn measure(&mut self, pieces: &[(usize, Piece)], now: Instant) {
        let mut written = pieces.iter().filter(|(_, piece)| piece.is_written());
        let Some(&(first, _)) = written.clone().next() else { return };
        if self.first.is_none() {
            self.first = Some(now);
            self.app.metrics.first_token(&self.model, now - self.since);
        }
        // Most requests have one answer, and its pieces come alone.
        let alike = written.all(|(index, _)| *index == first);
        for index in if alike { first..first + 1 } else { 0..self.last.len() } {
            let count = pieces.iter().filter(|(of, piece)| *of == index && piece.is_written()).count();
            let Some(last) = self.last.get_mut(index).filter(|_| count > 0) else { continue };
            if let Some(last) = last.replace(now) {
                self.app.metrics.between_tokens(&self.model, (now - last) / count as u32);
            }
        }
    }

    /// Waits for all answers.
    ///
    /// # Errors
    /// The engine failed, or time was over before there was anything of any answer.
    pub async fn whole(mut self) -> Result<Vec<Whole>, ApiError> {
        let mut answers: Vec<Whole> = (0..self.open).map(|_| Whole::default()).collect();
        while self.open > 0 {
            for (index, piece) in self.next().await {
                let Some(answer) = answers.get_mut(index) else { continue };
                match piece {
                    Piece::Text(piece) => {
                        answer.text += &piece.text;
                        answer.tokens.extend(piece.token);
                    }
                    Piece::ToolCalls(calls) => answer.tool_calls = calls,
                    Piece::Read(read) => answer.read = Some(read),
                    Piece::End(End { reason: EndReason::Failed(problem), .. }) => {
                        return Err(match self.outcome {
                            Outcome::TimedOut => ApiError::nothing_in_time(),
                            _ => ApiError::failed(problem),
                        });
                    }
                    Piece::End(end) => answer.end = Some(end),
                }
            }
        }
        let came_to_nothing = |answer: &Whole| answer.end.as_ref().is_some_and(End::is_nothing_in_time);
        match answers.iter().all(came_to_nothing) {
            true => Err(ApiError::nothing_in_time()),
            false => Ok(answers),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _request = self.span.clone().entered();
        self.usage += self.answers.unfinished();
        let used = self.usage.prompt + self.usage.completion;
        if let Some(key) = &self.client.key {
            self.app.limiter.tokens(key, used, Instant::now());
        }
        self.app.metrics.request(&self.model, self.outcome);
        let milliseconds = |moment: Instant| (moment - self.since).as_millis() as u64;
        tracing::info!(
            model = self.model,
            key = self.client.name(),
            outcome = self.outcome.name(),
            prompt_tokens = self.usage.prompt,
            cached_tokens = self.usage.cached,
            completion_tokens = self.usage.completion,
            first_token_ms = self.first.map(milliseconds),
            ms = milliseconds(Instant::now()),
            answer = self.written.as_deref(),
            "answer"
        );
    }
}

/// A request of which nothing is known yet but that it is one. Dropped before that changes, its client went away.
struct Beginning<'a> {
    app: &'a Shared,
    client: &'a Client,
    model: &'a str,
    since: Instant,
    given_up: bool,
}

impl Beginning<'_> {
    async fn answers(&self, ask: Ask) -> Result<Answers, ApiError> {
        let Beginning { app, client, model, .. } = *self;
        let target = app.catalog.get(model).await.inspect_err(|_| {
            if app.catalog.knows(model) {
                app.metrics.request(model, Outcome::Failed);
            }
        })?;
        if app.log_content {
            tracing::info!(model, prompt = ?ask.prompt, "asked");
        }
        target.ask(ask, Asker::new(client.id(), app.bounds.patience)).await.inspect_err(|_| {
            app.metrics.request(model, Outcome::Refused);
        })
    }
}

impl Drop for Beginning<'_> {
    fn drop(&mut self) {
        if self.given_up && self.app.catalog.knows(self.model) {
            let (outcome, ms) = (Outcome::Cancelled, self.since.elapsed().as_millis() as u64);
            self.app.metrics.request(self.model, outcome);
            tracing::info!(
                model = self.model,
                key = self.client.name(),
                outcome = outcome.name(),
                ms,
                "answer"
            );
        }
    }
}

/// Holds a request to the bounds of the server.
fn check(app: &Shared, ask: &mut Ask) -> Result<(), ApiError> {
    let bounds = &app.bounds;
    if !(1..=bounds.count).contains(&ask.count) {
        return Err(ApiError::field("n", format!("expected 1 to {}, found {}", bounds.count, ask.count)));
    }
    match &ask.prompt {
        Prompt::Chat { messages, .. } => {
            if messages.is_empty() {
                return Err(ApiError::field(ask.fields.prompt, "expected at least one message, found none"));
            }
            if messages.len() > bounds.messages {
                let problem = format!(
                    "{} messages are more than this server takes ({})",
                    messages.len(),
                    bounds.messages
                );
                return Err(ApiError::field(ask.fields.prompt, problem));
            }
        }
        Prompt::Texts(texts) => {
            if texts.is_empty() {
                return Err(ApiError::field(ask.fields.prompt, "expected a text, found none"));
            }
            if texts.len() * ask.count > 128 {
                let problem = "more than 128 answers in one request; send several requests";
                return Err(ApiError::field(ask.fields.prompt, problem));
            }
            if texts.iter().any(|text| matches!(text, Text::Tokens(ids) if ids.is_empty())) {
                return Err(ApiError::field(ask.fields.prompt, "expected tokens, found an empty list"));
            }
        }
    }
    if let Choice::Named(name) = &ask.tool_choice
        && ask.tools.iter().all(|tool| tool.name != *name)
    {
        return Err(ApiError::field(
            "tool_choice",
            format!("there is no tool named {name:?} among the tools"),
        ));
    }
    if ask.tools.is_empty() && ask.tool_choice == Choice::Required {
        return Err(ApiError::field("tool_choice", "a tool is required and there are no tools"));
    }
    if ask.calls_tools() && ask.format != Format::Text {
        let problem = "an answer of a given form and tools exclude each other; leave out one of them, or say that no tool may be called";
        return Err(ApiError::field(ask.fields.format, problem));
    }
    if let Some(most) = bounds.max_tokens {
        ask.max_tokens = Some(ask.max_tokens.map_or(most, |wanted| wanted.min(most)));
    }
    Ok(())
}
