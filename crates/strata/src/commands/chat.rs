//! `strata chat`

use std::io::{BufRead, IsTerminal, Write};

use anyhow::Result;
use clap::Args;
use rustyline::error::ReadlineError;
use strata_data::tokenizer::ChatOptions;
use strata_data::{Message, Role};
use strata_generate::{GenerateError, Limits, TextStream, generate};

use super::generate::SamplingArguments;
use super::print_line;
use crate::evaluate::Opened;
use crate::machine::{Place, WeightsArgument};

/// Arguments of `strata chat`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  strata chat demo-dialogue\n\nIn the chat, /new begins anew and /quit ends it. \
                        Without a terminal, every line of the input is a turn."
)]
pub struct ChatArguments {
    /// Name of a model, or path of a Hugging Face folder
    model: String,
    /// What the model is told before the conversation
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    /// Most tokens of an answer
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    weights: WeightsArgument,
}

/// Runs the command.
pub fn run(arguments: ChatArguments, place: &Place) -> Result<()> {
    let folder = place.home.resolve(&arguments.model)?;
    let model = Opened::load(&folder, &place.machine.cpu, arguments.weights.format())?;
    let beginning: Vec<Message> =
        arguments.system.iter().map(|system| Message::new(Role::System, system.clone())).collect();
    let mut messages = beginning.clone();
    let mut lines = Lines::open()?;
    while let Some(line) = lines.next()? {
        match line.trim() {
            "" => continue,
            "/quit" | "/exit" => break,
            "/new" => {
                messages = beginning.clone();
                eprintln!("(a new conversation)");
                continue;
            }
            text => messages.push(Message::new(Role::User, text)),
        }
        match answer(&model, &arguments, place, &mut messages, beginning.len()) {
            Ok(answer) => messages.push(Message::new(Role::Assistant, answer)),
            // What was said before is not lost by a turn that is too long.
            Err(error) if matches!(error.downcast_ref(), Some(GenerateError::Prompt { .. })) => {
                messages.pop();
                eprintln!("(that is not answered: {error})");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Answers the last turn, as it is written. The oldest turns are forgotten when the context is full.
fn answer(
    model: &Opened,
    arguments: &ChatArguments,
    place: &Place,
    messages: &mut Vec<Message>,
    kept: usize,
) -> Result<String> {
    let context = model.inference.context();
    let room = arguments.max_tokens.min(context / 2);
    let most = context.saturating_sub(room);
    let options = ChatOptions::default();
    let (ids, forgotten) = model.tokenizer.encode_prompt_within(messages, &options, most)?;
    // A last message that is too long by itself is not answered, and nothing is forgotten for it.
    if forgotten > 0 && ids.len() < context {
        messages.drain(kept..kept + forgotten);
        eprintln!("(the context of {context} tokens is full; the oldest {forgotten} messages are forgotten)");
    }
    let limits = Limits { max_tokens: arguments.max_tokens, stop: model.stop() };
    let mut stream = TextStream::new(&model.tokenizer, &arguments.sampling.stop, true);
    let mut text = String::new();
    let mut show = |piece: String| -> Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(piece.as_bytes())?;
        text.push_str(&piece);
        Ok(out.flush()?)
    };
    let mut failed = None;
    let sampling = arguments.sampling.sampling();
    generate(&model.inference, &place.machine.cpu, &[ids], &limits, sampling, |_, token| {
        failed = stream.push(token).map_err(anyhow::Error::from).and_then(&mut show).err();
        failed.is_none() && !stream.stopped()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    show(stream.finish()?)?;
    print_line("")?;
    Ok(text)
}

/// Lines from a terminal with editing and history, or plain ones.
enum Lines {
    Terminal(Box<rustyline::DefaultEditor>),
    Plain(std::io::StdinLock<'static>),
}

impl Lines {
    fn open() -> Result<Lines> {
        if std::io::stdin().is_terminal() {
            eprintln!("(write and press Enter; /new begins anew, /quit or Ctrl-D ends)");
            return Ok(Lines::Terminal(Box::new(rustyline::DefaultEditor::new()?)));
        }
        Ok(Lines::Plain(std::io::stdin().lock()))
    }

    fn next(&mut self) -> Result<Option<String>> {
        match self {
            Lines::Terminal(editor) => match editor.readline("> ") {
                Ok(line) => {
                    editor.add_history_entry(&line)?;
                    Ok(Some(line))
                }
                Err(ReadlineError::Eof | ReadlineError::Interrupted) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Lines::Plain(input) => {
                let mut line = String::new();
                Ok((input.read_line(&mut line)? > 0).then_some(line))
            }
        }
    }
}
