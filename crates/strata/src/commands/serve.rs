//! `strata serve`

use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use strata_generate::engine::Settings;
use strata_serve::{Bounds, Connections, Keys, Server, Upstream};
use tokio::net::TcpListener;

use crate::failure::BadInput;
use crate::machine::{DEFAULT_WEIGHTS, Place, WeightsName};
use crate::open_files;

/// Arguments of `strata serve`; what a flag does not say, the file of `--config` does.
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
#[command(
    after_help = "Example:\n  strata serve\n  strata keys create lab && strata serve --host 0.0.0.0\n\n\
                  Cohere's client takes this server's address, OpenAI's the same with /v1. In a file for --config, the \
                  flags are written without dashes at the front: port = 8080."
)]
pub struct ServeArguments {
    /// TOML file with the same settings as the flags, which come first
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Address to listen on [default: 127.0.0.1]; others than loopback need a key
    #[arg(long, value_name = "ADDRESS", value_parser = host)]
    #[serde(deserialize_with = "host_of_file")]
    host: Option<IpAddr>,
    /// Port [default: 8080]; 0 takes a free one
    #[arg(long, value_name = "N")]
    port: Option<u16>,
    /// Serve only this model, by name or path; may be given several times [default: all of the home folder]
    #[arg(long, value_name = "MODEL")]
    #[serde(default)]
    model: Vec<String>,
    /// Serve the models of another server too, which speaks the OpenAI API. Its key, if it wants one, is read from
    /// STRATA_UPSTREAM_KEY
    #[arg(long, value_name = "URL")]
    upstream: Option<String>,
    /// Answers that are written at the same time, per model [default: 128]
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    /// Requests that wait, per model, before others are turned away [default: 256]
    #[arg(long, value_name = "N")]
    queue: Option<usize>,
    /// Mebibytes of keys and values in memory, per model [default: 1024]
    #[arg(long, value_name = "MIB")]
    cache: Option<usize>,
    /// Models in memory at one time [default: 4]
    #[arg(long, value_name = "N")]
    loaded: Option<usize>,
    /// Most tokens of an answer, whatever a request asks for [default: as the model's context has room]
    #[arg(long, value_name = "N")]
    max_tokens: Option<usize>,
    /// What weights are held in [default: bf16]: f32 is the reference, int8 the fastest for one stream
    #[arg(long, value_enum, value_name = "FORMAT")]
    weights: Option<WeightsName>,
    /// Seconds an answer may take [default: 300]
    #[arg(long, value_name = "S")]
    timeout: Option<u64>,
    /// Mebibytes of a request's body [default: 4]
    #[arg(long, value_name = "MIB")]
    body: Option<usize>,
    /// Open connections [default: 1024]
    #[arg(long, value_name = "N")]
    connections: Option<usize>,
    /// Seconds that running answers get when the server is stopped [default: 30]
    #[arg(long, value_name = "S")]
    grace: Option<u64>,
    /// Form of the log on stderr [default: text]
    #[arg(long, value_enum)]
    log: Option<LogForm>,
    /// Write prompts and answers to the log, which otherwise holds neither
    #[arg(long)]
    log_content: bool,
}

fn host_of_file<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<IpAddr>, D::Error> {
    host(&String::deserialize(from)?).map(Some).map_err(serde::de::Error::custom)
}

fn host(text: &str) -> Result<IpAddr, String> {
    match text {
        "localhost" => Ok(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        address => {
            address.parse().map_err(|_| "expected an address of this machine, such as 127.0.0.1".into())
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LogForm {
    Text,
    Json,
}

impl ServeArguments {
    /// With what the file says where the flags say nothing.
    fn with_file(self) -> Result<ServeArguments> {
        let Some(path) = &self.config else { return Ok(self) };
        let file = read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(ServeArguments {
            config: None,
            host: self.host.or(file.host),
            port: self.port.or(file.port),
            model: if self.model.is_empty() { file.model } else { self.model },
            upstream: self.upstream.or(file.upstream),
            batch: self.batch.or(file.batch),
            queue: self.queue.or(file.queue),
            cache: self.cache.or(file.cache),
            loaded: self.loaded.or(file.loaded),
            max_tokens: self.max_tokens.or(file.max_tokens),
            weights: self.weights.or(file.weights),
            timeout: self.timeout.or(file.timeout),
            body: self.body.or(file.body),
            connections: self.connections.or(file.connections),
            grace: self.grace.or(file.grace),
            log: self.log.or(file.log),
            log_content: self.log_content || file.log_content,
        })
    }
}

/// What is nothing where it is zero: a server with it would answer nobody.
fn check(arguments: &ServeArguments) -> Result<()> {
    let counts = [
        ("batch", arguments.batch),
        ("queue", arguments.queue),
        ("loaded", arguments.loaded),
        ("max-tokens", arguments.max_tokens),
        ("timeout", arguments.timeout.map(|seconds| seconds as usize)),
        ("body", arguments.body),
        ("connections", arguments.connections),
    ];
    match counts.into_iter().find(|(_, count)| *count == Some(0)) {
        Some((name, _)) => Err(BadInput(format!("{name}: expected at least 1, found 0")).into()),
        None => Ok(()),
    }
}

fn read(path: &Path) -> Result<ServeArguments> {
    let text = std::fs::read_to_string(path).map_err(|error| BadInput(error.to_string()))?;
    Ok(toml::from_str(&text).map_err(|error| BadInput(error.to_string()))?)
}

/// Runs the command.
pub fn run(arguments: ServeArguments, place: &Place) -> Result<()> {
    let arguments = arguments.with_file()?;
    check(&arguments)?;
    start_log(arguments.log.unwrap_or(LogForm::Text))?;
    let address = SocketAddr::new(
        arguments.host.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)),
        arguments.port.unwrap_or(8080),
    );
    let keys = Keys::open(&place.home.path().join("strata.db"))?;
    let has_keys = keys.any()?;
    if !address.ip().is_loopback() && !has_keys {
        let problem = format!(
            "at {} everybody who reaches this machine could use its models, and there is no key yet; make one with \
             `strata keys create NAME`, or leave out --host",
            address.ip()
        );
        return Err(BadInput(problem).into());
    }
    let server = server(&arguments, place, keys)?;
    if let Some(connections) = open_files::allow(server.connections.most as u64) {
        tracing::warn!(
            connections,
            "the limit of open files (ulimit -n) leaves room for fewer connections than --connections"
        );
    }
    let nothing_to_serve =
        arguments.upstream.is_none() && server.only.is_none() && place.home.models()?.is_empty();
    // Connections take less than half of the machine, and the fewer threads they have, the less often one has to wake another.
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(cores.div_ceil(2)).enable_all().build()?;
    let served = runtime.block_on(async {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening on {address} (see --port)"))?;
        let address = listener.local_addr()?;
        let who = match has_keys {
            true => "with a key",
            false => "without a key, to this machine only",
        };
        let told = format!("Strata serves at http://{address} {who} (API: /docs, Ctrl-C stops)");
        match arguments.log {
            // A log that programs read has no other lines.
            Some(LogForm::Json) => tracing::info!("{told}"),
            // Who reads it may be gone, or the disk full: that is no reason not to serve.
            _ => drop(writeln!(std::io::stderr(), "{told}")),
        }
        if nothing_to_serve {
            tracing::warn!("there is no model yet; `strata demo` makes some");
        }
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            home = %place.home.path().display(),
            threads = place.machine.cpu.threads(),
            %address,
            "started"
        );
        Ok(server.run(listener, stopped()).await?)
    });
    // What is still being read or encoded would be waited for, and nobody waits for it any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    served
}

fn server(arguments: &ServeArguments, place: &Place, keys: Keys) -> Result<Server> {
    let only = arguments.model.iter().map(|model| {
        let folder = place.home.resolve(model)?;
        let name =
            folder.file_name().map_or_else(|| model.clone(), |name| name.to_string_lossy().into_owned());
        Ok((name, folder))
    });
    let only: Vec<(String, PathBuf)> = only.collect::<Result<_>>()?;
    let twice =
        only.iter().enumerate().find(|(at, (name, _))| only[..*at].iter().any(|(other, _)| other == name));
    if let Some((_, (name, _))) = twice {
        let problem = format!("--model: two of the models are called {name:?}, the name that requests use");
        return Err(BadInput(problem).into());
    }
    let key = std::env::var("STRATA_UPSTREAM_KEY").ok().filter(|key| !key.is_empty());
    let upstream = arguments.upstream.as_deref().map(|url| Upstream::new(url, key)).transpose();
    let (engine, bounds, connections) = (Settings::default(), Bounds::default(), Connections::default());
    let seconds = |value: Option<u64>, default: Duration| value.map_or(default, Duration::from_secs);
    let mebibytes =
        |value: Option<usize>, default: usize| value.map_or(default, |mib| mib.saturating_mul(1 << 20));
    Ok(Server {
        home: place.home.clone(),
        only: (!only.is_empty()).then_some(only),
        cpu: place.machine.cpu.clone(),
        engine: Settings {
            batch: arguments.batch.unwrap_or(engine.batch),
            queue: arguments.queue.unwrap_or(engine.queue),
            cache_bytes: mebibytes(arguments.cache, engine.cache_bytes),
            ..engine
        },
        weights: arguments.weights.unwrap_or(DEFAULT_WEIGHTS).format(),
        most_loaded: arguments.loaded.unwrap_or(4),
        upstream: upstream.map_err(|problem| BadInput(format!("--upstream {problem}")))?,
        keys,
        bounds: Bounds {
            body_bytes: mebibytes(arguments.body, bounds.body_bytes),
            max_tokens: arguments.max_tokens.or(bounds.max_tokens),
            patience: seconds(arguments.timeout, bounds.patience),
            ..bounds
        },
        connections: Connections {
            most: arguments.connections.unwrap_or(connections.most),
            grace: seconds(arguments.grace, connections.grace),
            ..connections
        },
        log_content: arguments.log_content,
    })
}

fn start_log(form: LogForm) -> Result<()> {
    use tracing_subscriber::EnvFilter;
    use tracing_subscriber::filter::LevelFilter;
    let level = std::env::var("STRATA_LOG").ok().filter(|level| !level.is_empty());
    let level = level.as_deref().unwrap_or("info");
    let wrong =
        || BadInput(format!("STRATA_LOG: expected off, error, warn, info, debug or trace, found {level:?}"));
    // A word that is no level would be taken as the name of something, and nothing else be logged.
    if level.bytes().all(|byte| byte.is_ascii_alphanumeric()) && level.parse::<LevelFilter>().is_err() {
        return Err(wrong().into());
    }
    let filter = EnvFilter::try_new(level).map_err(|_| wrong())?;
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_target(false);
    // A line that cannot be written is lost: to complain of it on the same stderr would panic.
    let log = log.with_ansi(std::io::stderr().is_terminal()).log_internal_errors(false);
    // A log that was started before stays.
    let _ = match form {
        LogForm::Text => log.try_init(),
        LogForm::Json => log.json().with_span_list(false).try_init(),
    };
    Ok(())
}

/// Waits for Ctrl-C or a polite signal to end, of which a second one ends the process at once.
async fn stopped() {
    let mut signals = Signals::new();
    signals.next().await;
    tokio::spawn(async move {
        signals.next().await;
        tracing::warn!("ended before all answers were finished");
        std::process::exit(130);
    });
}

#[cfg(unix)]
struct Signals(Vec<tokio::signal::unix::Signal>);

#[cfg(unix)]
impl Signals {
    fn new() -> Signals {
        use tokio::signal::unix::{SignalKind, signal};
        let kinds = [SignalKind::interrupt(), SignalKind::terminate()];
        Signals(kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect())
    }

    async fn next(&mut self) {
        let each: Vec<_> = self.0.iter_mut().map(|signal| Box::pin(signal.recv())).collect();
        if each.is_empty() {
            std::future::pending::<()>().await;
        }
        futures_util::future::select_all(each).await;
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> Signals {
        Signals
    }

    async fn next(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}
