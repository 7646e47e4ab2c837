//! `strata bench serve`: a server in a process of its own, and as many clients as asked.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::{Value, json};
use strata_data::Tokenizer;
use strata_data::world::{Part, World};
use strata_model::{Config, Decoder, folder, weights, write_weights};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::{print_json, print_line};
use crate::failure::BadInput;
use crate::machine::{DEFAULT_WEIGHTS, Place, WeightsName};
use crate::show::thousands;

/// Arguments of `strata bench serve`.
#[derive(Args)]
pub struct ServeBench {
    /// Model to serve, by name or path [default: one of the demo's size, untrained]
    #[arg(long, value_name = "MODEL")]
    model: Option<String>,
    /// Ask this server, which speaks the OpenAI API, instead of starting one; then --model is its model's name. Its key, if it wants one,
    /// is read from STRATA_KEY
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Numbers of clients that ask at the same time
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 32, 128], value_name = "N,…")]
    clients: Vec<usize>,
    /// Seconds for each of them, after a warm-up
    #[arg(long, default_value_t = 5.0, value_name = "S")]
    seconds: f64,
    /// Sentences of three words in each prompt; no two prompts are alike
    #[arg(long, default_value_t = 3, value_name = "N")]
    sentences: usize,
    /// What the server holds weights in [default: as `strata serve` does]
    #[arg(long, value_enum, value_name = "FORMAT", conflicts_with = "url")]
    weights: Option<WeightsName>,
    /// Tokens of each answer
    #[arg(long, default_value_t = 64, value_name = "N")]
    tokens: usize,
    /// Temperature of the choice of tokens; 0 takes the likeliest
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// A server that was started here, and ends with this.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs the command.
pub fn run(bench: &ServeBench, place: &Place) -> Result<()> {
    if bench.clients.is_empty() || bench.clients.contains(&0) {
        return Err(BadInput("--clients must be at least 1".into()).into());
    }
    if !(bench.seconds > 0.0 && bench.seconds <= 86_400.0) {
        return Err(BadInput(format!("--seconds: expected up to 86,400, found {}", bench.seconds)).into());
    }
    let home = tempfile::tempdir()?;
    let (target, _server) = match &bench.url {
        Some(url) => {
            let missing = || BadInput("--url needs --model, the name of one of its models".into());
            (Target::parse(url, bench.model.clone().ok_or_else(missing)?)?, None)
        }
        None => {
            let path = match &bench.model {
                Some(model) => place.home.resolve(model)?,
                None => make_model(home.path())?,
            };
            let weights = bench.weights.unwrap_or(DEFAULT_WEIGHTS);
            let (server, address) = start(&path, home.path(), place.machine.cpu.threads(), weights)?;
            let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
            // Else an answer may be over before it is measured.
            let ends = Tokenizer::load(&path)?.eos_ids().to_vec();
            let target = Target { ends, ..Target::new(address, "/v1/completions".into(), name) };
            (target, Some(server))
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut rows = Vec::new();
    for clients in &bench.clients {
        let level = runtime.block_on(measure(&target, bench, *clients))?;
        if !bench.json {
            print_line(&level.line())?;
        }
        rows.push(level);
    }
    if bench.json {
        let levels: Vec<Value> = rows.iter().map(Level::json).collect();
        return print_json(
            &json!({ "model": target.model, "prompt_sentences": bench.sentences, "answer_tokens": bench.tokens, "temperature": bench.temperature, "levels": levels }),
        );
    }
    Ok(())
}

/// An untrained model of the demo's size; speed does not depend on what its weights are.
fn make_model(home: &Path) -> Result<PathBuf> {
    let text: Vec<String> = World::new(1).base_text(Part::Training, 200_000).collect();
    let tokenizer = Tokenizer::train(text.iter().map(Ok), 2048)?;
    let config = Config {
        vocab_size: tokenizer.vocab_size(),
        width: 128,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: 32,
        ffn: 352,
        max_positions: 512,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: true,
        bos: tokenizer.bos_id(),
        eos: tokenizer.eos_ids().to_vec(),
        mixing: strata_model::Mixing::default(),
    };
    let path = home.join("untrained");
    std::fs::create_dir_all(&path)?;
    let decoder = Decoder::new(&config, 1)?;
    config.save(&path)?;
    write_weights(&path.join(weights::SINGLE_FILE), &decoder.tensors())?;
    folder::write_generation_config(&path, &config)?;
    tokenizer.save(&path)?;
    Ok(path)
}

fn start(model: &Path, home: &Path, threads: usize, weights: WeightsName) -> Result<(Server, String)> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--model"]).arg(model);
    command.args(["--threads", &threads.to_string(), "--weights", weights.name()]);
    command.env("STRATA_HOME", home).env("STRATA_LOG", "warn").stdin(Stdio::null()).stderr(Stdio::piped());
    let mut server = Server(command.spawn().context("starting the server")?);
    let errors = server.0.stderr.take().context("the server has no stderr")?;
    let mut lines = BufReader::new(errors).lines();
    let first = lines.next().context("the server ended at once")??;
    let address = first.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
    let Some(address) = address else { bail!("the server does not start: {first}") };
    // A full pipe would stop the server.
    std::thread::spawn(move || lines.for_each(drop));
    Ok((server, address.to_string()))
}

/// Where to ask for what.
struct Target {
    address: String,
    path: String,
    model: String,
    /// Tokens that must not come.
    ends: Vec<u32>,
    key: Option<String>,
    /// Prompts so far.
    asked: AtomicUsize,
}

/// Numbers that a sentence begins with.
const NUMBERS: usize = 9973;

impl Target {
    fn new(address: String, path: String, model: String) -> Target {
        Target { address, path, model, ends: Vec::new(), key: None, asked: AtomicUsize::new(0) }
    }

    /// A prompt that was not sent before, so that nothing is known of it: its number, or the first two of its numbers, are its own.
    fn prompt(&self, sentences: usize) -> String {
        let own = self.asked.fetch_add(1, Relaxed);
        if sentences == 1 {
            return format!("{own} the water");
        }
        let sentence = |at: usize| format!("{} the water", (own + at * (own / NUMBERS + 31)) % NUMBERS);
        (0..sentences).map(sentence).collect::<Vec<_>>().join(" ")
    }

    fn parse(url: &str, model: String) -> Result<Target> {
        let bad = || BadInput(format!("--url {url}: expected http://HOST:PORT/v1"));
        let rest = url.strip_prefix("http://").ok_or_else(bad)?;
        let (address, path) = rest.split_once('/').unwrap_or((rest, "v1"));
        let path = format!("/{}/completions", path.trim_end_matches('/'));
        let key = std::env::var("STRATA_KEY").ok().filter(|key| !key.is_empty());
        Ok(Target { key, ..Target::new(address.to_string(), path, model) })
    }

    fn request(&self, prompt: &str, tokens: usize, temperature: f32) -> Vec<u8> {
        let bias: serde_json::Map<String, Value> =
            self.ends.iter().map(|token| (token.to_string(), json!(-100))).collect();
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": tokens, "temperature": temperature, "stream": true,
            "stream_options": { "include_usage": true }, "logit_bias": bias,
        });
        let body = body.to_string();
        let (path, host, length) = (&self.path, &self.address, body.len());
        let key = self.key.as_ref().map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        format!(
            "POST {path} HTTP/1.1\r\nHost: {host}\r\n{key}Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

/// What one number of clients gets.
struct Level {
    clients: usize,
    answers: usize,
    tokens_per_second: f64,
    first: Vec<f64>,
    between: Vec<f64>,
}

impl Level {
    fn json(&self) -> Value {
        json!({
            "clients": self.clients,
            "answers": self.answers,
            "tokens_per_second": self.tokens_per_second,
            "tokens_per_second_per_client": self.tokens_per_second / self.clients as f64,
            "first_token_p50_ms": percentile(&self.first, 0.5),
            "first_token_p99_ms": percentile(&self.first, 0.99),
            "between_tokens_p50_ms": percentile(&self.between, 0.5),
            "between_tokens_p99_ms": percentile(&self.between, 0.99),
        })
    }

    fn line(&self) -> String {
        format!(
            "{:>4} clients  {:>8} tokens/s  {:>7} each   first token {:>7.2} / {:>7.2} ms   between {:>6.2} / {:>6.2} ms \
             (median / 99 %)",
            self.clients,
            thousands(self.tokens_per_second),
            thousands(self.tokens_per_second / self.clients as f64),
            percentile(&self.first, 0.5),
            percentile(&self.first, 0.99),
            percentile(&self.between, 0.5),
            percentile(&self.between, 0.99),
        )
    }
}

/// `sorted` is ascending; 0 of nothing.
fn percentile(sorted: &[f64], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((part * last as f64).round() as usize).copied().unwrap_or(0.0)
}

/// Lets `clients` ask again and again, each as soon as it has its answer.
async fn measure(target: &Target, bench: &ServeBench, clients: usize) -> Result<Level> {
    let begin = Instant::now() + Duration::from_secs_f64(0.2 * bench.seconds);
    let end = begin + Duration::from_secs_f64(bench.seconds);
    let asking = (0..clients).map(|_| ask_until(target, bench, begin, end));
    let mut level =
        Level { clients, answers: 0, tokens_per_second: 0.0, first: Vec::new(), between: Vec::new() };
    let mut tokens = 0;
    for seen in futures_util::future::try_join_all(asking).await? {
        level.answers += seen.answers;
        level.first.extend(seen.first);
        level.between.extend(seen.between);
        tokens += seen.tokens;
    }
    level.tokens_per_second = tokens as f64 / bench.seconds;
    level.first.sort_by(f64::total_cmp);
    level.between.sort_by(f64::total_cmp);
    Ok(level)
}

/// What one client saw between the beginning and the end.
#[derive(Default)]
struct Seen {
    answers: usize,
    tokens: usize,
    first: Vec<f64>,
    between: Vec<f64>,
}

async fn ask_until(target: &Target, bench: &ServeBench, begin: Instant, end: Instant) -> Result<Seen> {
    let mut stream = TcpStream::connect(&target.address).await.context("connecting to the server")?;
    stream.set_nodelay(true)?;
    let mut seen = Seen::default();
    let mut buffer = vec![0; 64 << 10];
    let mut rest = Vec::new();
    while Instant::now() < end {
        let prompt = target.prompt(bench.sentences);
        let sent = Instant::now();
        stream.write_all(&target.request(&prompt, bench.tokens, bench.temperature)).await?;
        let mut events = Events { pending: std::mem::take(&mut rest), ..Events::default() };
        let mut last = None;
        while !events.ended {
            let count = stream.read(&mut buffer).await?;
            if count == 0 {
                bail!("the server closed the connection after: {}", events.beginning());
            }
            let now = Instant::now();
            let written = events.written;
            events.read(&buffer[..count])?;
            let inside = now >= begin && now < end;
            if events.ended && inside {
                // In a steady state as many answers begin before the time as are cut off by its end.
                let tokens = events.tokens.unwrap_or(events.written);
                seen.tokens += tokens;
                // Those that came in the same event as others waited for nothing.
                seen.between.extend(std::iter::repeat_n(0.0, tokens.saturating_sub(events.arrivals + 1)));
            }
            if events.written == written {
                continue;
            }
            events.arrivals += 1;
            let milliseconds = |since: Instant| (now - since).as_secs_f64() * 1e3;
            match last {
                None if inside => seen.first.push(milliseconds(sent)),
                Some(last) if inside => seen.between.push(milliseconds(last)),
                _ => {}
            }
            last = Some(now);
        }
        rest = events.pending;
        seen.answers += usize::from(Instant::now() < end);
    }
    Ok(seen)
}

/// Reads just enough of an answer to count its tokens: what the server says at its end, or else the events with text.
#[derive(Default)]
struct Events {
    pending: Vec<u8>,
    ended: bool,
    begun: bool,
    /// Events with text.
    written: usize,
    /// Times at which some came.
    arrivals: usize,
    /// Tokens of the answer, as the server says.
    tokens: Option<usize>,
}

impl Events {
    fn read(&mut self, bytes: &[u8]) -> Result<()> {
        self.pending.extend_from_slice(bytes);
        if !self.begun {
            // What is left of the answer before.
            while self.pending.starts_with(b"\r\n") {
                self.pending.drain(..2);
            }
            let Some(end) = find(&self.pending, b"\r\n\r\n") else { return Ok(()) };
            if !self.pending.starts_with(b"HTTP/1.1 200") {
                bail!("the server refuses: {}", self.beginning());
            }
            self.pending.drain(..end + 4);
            self.begun = true;
        }
        let mut done = 0;
        while let Some(length) = find(&self.pending[done..], b"\n") {
            let line = &self.pending[done..done + length];
            done += length + 1;
            if line.starts_with(b"data: {") {
                let without_end =
                    find(line, b"\"finish_reason\":null").or(find(line, b"\"finish_reason\": null"));
                self.written += usize::from(without_end.is_some());
                self.tokens = completion_tokens(line).or(self.tokens);
            }
            // The last piece of a chunked body has no length.
            self.ended |= line == b"0\r";
        }
        self.pending.drain(..done);
        Ok(())
    }

    fn beginning(&self) -> String {
        String::from_utf8_lossy(&self.pending[..self.pending.len().min(600)]).into_owned()
    }
}

/// The number behind `"completion_tokens":`.
fn completion_tokens(line: &[u8]) -> Option<usize> {
    let name: &[u8] = b"\"completion_tokens\":";
    let rest = &line[find(line, name)? + name.len()..];
    let digits: String = rest
        .iter()
        .map(|byte| char::from(*byte))
        .skip_while(|c| *c == ' ')
        .take_while(char::is_ascii_digit)
        .collect();
    digits.parse().ok()
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn no_two_prompts_are_alike() {
        for sentences in 1..4 {
            let target = Target::new(String::new(), String::new(), String::new());
            let count = 3 * NUMBERS + 7;
            let prompts: HashSet<String> = (0..count).map(|_| target.prompt(sentences)).collect();
            assert_eq!(prompts.len(), count);
        }
    }
}
