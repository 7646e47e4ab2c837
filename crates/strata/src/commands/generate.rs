//! `strata generate`

use std::io::Write;

use anyhow::Result;
use clap::Args;
use strata_data::{Message, Role};
use strata_generate::{Finish, Limits, Sampling, TextStream, generate};

use super::{print_json, print_line};
use crate::evaluate::Opened;
use crate::machine::{Place, WeightsArgument};

/// Arguments of `strata generate`.
#[derive(Args)]
#[command(after_help = "Example:\n  strata generate demo-command -p \"What is the opposite of hot?\"")]
pub struct GenerateArguments {
    /// Name of a model, or path of a Hugging Face folder
    model: String,
    /// The text: a question for a command or dialogue model, else the beginning of a text
    #[arg(short, long, value_name = "TEXT")]
    prompt: String,
    /// Most new tokens
    #[arg(long, default_value_t = 256, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArguments,
    #[command(flatten)]
    weights: WeightsArgument,
    /// Continue the text even where the model was taught to answer
    #[arg(long, conflicts_with = "chat")]
    raw: bool,
    /// Ask in the model's chat format even where it is not known to converse
    #[arg(long)]
    chat: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// How tokens are chosen.
#[derive(Args)]
pub struct SamplingArguments {
    /// 0 takes the likeliest token always; 1 chooses as the model would
    #[arg(long, default_value_t = 0.0, value_name = "T", value_parser = non_negative)]
    temperature: f32,
    /// Choose among the K likeliest tokens only; 0 means all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Choose among the likeliest tokens that reach this probability together
    #[arg(long, default_value_t = 1.0, value_name = "P", value_parser = non_negative)]
    top_p: f32,
    /// Seed of the choices
    #[arg(long, default_value_t = 0, value_name = "S")]
    seed: u64,
    /// Text that ends the answer and is not part of it; may be given several times
    #[arg(long, value_name = "TEXT")]
    pub stop: Vec<String>,
}

impl SamplingArguments {
    /// As the decoder wants them.
    pub fn sampling(&self) -> Sampling {
        Sampling {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            seed: self.seed,
            ..Sampling::default()
        }
    }
}

fn non_negative(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("expected a number, 0 or more".to_string()),
    }
}

/// Runs the command.
pub fn run(arguments: GenerateArguments, place: &Place) -> Result<()> {
    let folder = place.home.resolve(&arguments.model)?;
    let model = Opened::load(&folder, &place.machine.cpu, arguments.weights.format())?;
    let answer = arguments.chat || (model.converses && !arguments.raw);
    let ids = if answer {
        model.tokenizer.encode_prompt(&[Message::new(Role::User, &arguments.prompt)])?
    } else {
        model.encode_text(&arguments.prompt)?
    };
    let prompt_tokens = ids.len();
    let limits = Limits { max_tokens: arguments.max_tokens, stop: model.stop() };
    let mut stream = TextStream::new(&model.tokenizer, &arguments.sampling.stop, answer);
    let mut text = String::new();
    let mut show = |piece: String| -> Result<()> {
        if !arguments.json {
            let mut out = std::io::stdout().lock();
            out.write_all(piece.as_bytes())?;
            out.flush()?;
        }
        text.push_str(&piece);
        Ok(())
    };
    let mut failed = None;
    let sampling = arguments.sampling.sampling();
    let results = generate(&model.inference, &place.machine.cpu, &[ids], &limits, sampling, |_, token| {
        failed = stream.push(token).map_err(anyhow::Error::from).and_then(&mut show).err();
        failed.is_none() && !stream.stopped()
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    show(stream.finish()?)?;
    if !arguments.json {
        return print_line("");
    }
    let result = &results[0];
    print_json(&serde_json::json!({
        "text": text,
        "prompt_tokens": prompt_tokens,
        "tokens": result.tokens,
        "finish": if stream.stopped() || result.finish == Finish::Stop { "stop" } else { "length" },
    }))
}
