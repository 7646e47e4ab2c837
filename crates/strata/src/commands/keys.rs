//! `strata keys`

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use strata_serve::Keys;

use super::{print_json, print_line};
use crate::machine::Place;

/// Arguments of `strata keys`.
#[derive(Args)]
#[command(
    after_help = "Example:\n  strata keys create lab --requests-per-minute 600\n  strata keys\n  strata keys revoke lab"
)]
pub struct KeysArguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Make a key and show it, once.
    #[command(
        after_help = "Example:\n  strata keys create lab --requests-per-minute 600 --tokens-per-minute 100000"
    )]
    Create {
        /// Name of the key: who or what uses it
        name: String,
        /// Requests a minute [default: any number]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
        /// Tokens a minute, prompts and answers together [default: any number]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        tokens_per_minute: Option<u32>,
    },
    /// Make a key worthless, at once and for good.
    #[command(after_help = "Example:\n  strata keys revoke lab")]
    Revoke {
        /// Name of the key
        name: String,
    },
    /// List the keys.
    List,
}

/// Runs the command.
pub fn run(arguments: KeysArguments, place: &Place) -> Result<()> {
    let keys = Keys::open(&place.home.path().join("strata.db"))?;
    match arguments.action {
        Some(Action::Create { name, requests_per_minute, tokens_per_minute }) => {
            let (secret, key) = keys.create(&name, requests_per_minute, tokens_per_minute)?;
            if arguments.json {
                return print_json(&json!({ "key": secret, "name": key.name }));
            }
            eprintln!("The key {:?}; it is shown this once and stored as a hash only:", key.name);
            print_line(&secret)
        }
        Some(Action::Revoke { name }) => {
            keys.revoke(&name)?;
            if !keys.any()? {
                eprintln!(
                    "That was the last key. A server that runs answers nobody until there is one again; one that is \
                     started now does without, on this machine only."
                );
            }
            match arguments.json {
                true => print_json(&json!({ "revoked": name })),
                false => print_line(&format!("{name:?} is worthless now")),
            }
        }
        Some(Action::List) | None => list(&keys, arguments.json),
    }
}

fn list(keys: &Keys, json: bool) -> Result<()> {
    let keys = keys.list()?;
    if json {
        return print_json(&json!({ "keys": keys }));
    }
    if keys.is_empty() {
        eprintln!(
            "no keys: the server answers without, to this machine only; `strata keys create NAME` makes one"
        );
    }
    let limit = |limit: Option<u32>, what: &str| {
        limit.map(|limit| format!("  {limit} {what}/min")).unwrap_or_default()
    };
    for key in keys {
        let requests = limit(key.requests_per_minute, "requests");
        let tokens = limit(key.tokens_per_minute, "tokens");
        print_line(&format!("{:24} {}…{requests}{tokens}", key.name, key.beginning))?;
    }
    Ok(())
}
