//! `strata models`

use anyhow::Result;
use clap::{Args, Subcommand};
use serde_json::json;
use strata_model::mixers::CacheFormat;
use strata_model::{Config, Lineage};

use super::{print_json, print_line};
use crate::machine::{DEFAULT_WEIGHTS, Place};
use crate::show::thousands;

/// Arguments of `strata models`.
#[derive(Args)]
#[command(after_help = "Example:\n  strata models\n  strata models show demo-base")]
pub struct ModelsArguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print one JSON object
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Action {
    /// Show where a model comes from.
    #[command(after_help = "Example:\n  strata models show demo-base")]
    Show {
        /// Name of a model, or path of a Hugging Face folder
        model: String,
    },
}

/// Runs the command.
pub fn run(arguments: ModelsArguments, place: &Place) -> Result<()> {
    match arguments.action {
        None => list(arguments.json, place),
        Some(Action::Show { model }) => show(&model, arguments.json, place),
    }
}

fn list(json: bool, place: &Place) -> Result<()> {
    let mut models = Vec::new();
    for name in place.home.models()? {
        let folder = place.home.model(&name)?;
        // A folder that cannot be read is listed with its reason: it must not hide the others.
        let row = Config::load(&folder).and_then(|config| Ok((config, Lineage::load(&folder)?)));
        models.push((name, row));
    }
    if json {
        let rows: Vec<serde_json::Value> = models
            .iter()
            .map(|(name, row)| match row {
                Ok((config, lineage)) => json!({
                    "name": name,
                    "stage": lineage.as_ref().map(|lineage| &lineage.stage),
                    "parent": lineage.as_ref().and_then(|lineage| lineage.parent.as_ref()).map(|parent| &parent.name),
                    "parameters": config.parameter_count(),
                }),
                Err(error) => json!({ "name": name, "error": error.to_string() }),
            })
            .collect();
        return print_json(&json!({ "home": place.home.path(), "models": rows }));
    }
    if models.is_empty() {
        eprintln!("no models in {} yet; `strata demo` makes some", place.home.path().display());
    }
    for (name, row) in models {
        match row {
            Ok((config, lineage)) => {
                let stage = lineage.as_ref().map_or("other", |lineage| lineage.stage.as_str());
                let parent = lineage.as_ref().and_then(|lineage| lineage.parent.as_ref());
                let from = parent.map_or(String::new(), |parent| format!("from {}", parent.name));
                let parameters = thousands(config.parameter_count() as f64);
                print_line(&format!("{name:24} {stage:10} {parameters:>16} parameters  {from}"))?;
            }
            Err(error) => print_line(&format!("{name:24} cannot be read: {error}"))?,
        }
    }
    Ok(())
}

fn show(model: &str, json: bool, place: &Place) -> Result<()> {
    let folder = place.home.resolve(model)?;
    let config = Config::load(&folder)?;
    let lineage = Lineage::load(&folder)?;
    if json {
        return print_json(&json!({
            "path": folder, "parameters": config.parameter_count(), "config": config.to_json(), "lineage": lineage,
        }));
    }
    print_line(&format!("path        {}", folder.display()))?;
    print_line(&format!("parameters  {}", thousands(config.parameter_count() as f64)))?;
    let heads = match config.heads {
        0 => String::new(),
        heads => format!("{heads} heads ({} for keys and values), ", config.kv_heads),
    };
    let inner = if config.ffn > 0 { format!("ffn {}, ", config.ffn) } else { String::new() };
    print_line(&format!(
        "shape       {} layers, width {}, {heads}{inner}vocabulary {}, context {}",
        config.layers,
        config.width,
        config.vocab_size,
        config.context()
    ))?;
    let format = CacheFormat::beside(DEFAULT_WEIGHTS.format(), place.machine.cpu.isa());
    let state = config.state_bytes(config.max_positions, format);
    print_line(&format!(
        "mixer       {}; a sequence of {} tokens holds {} KB",
        config.mixing.name(config.layers),
        config.max_positions,
        thousands(state as f64 / 1024.0)
    ))?;
    let Some(lineage) = lineage else {
        return print_line("lineage     none: made elsewhere");
    };
    print_line(&format!("stage       {}", lineage.stage))?;
    if let Some(parent) = &lineage.parent {
        print_line(&format!("parent      {} (SHA-256 {})", parent.name, parent.sha256))?;
    }
    for file in &lineage.data {
        print_line(&format!("data        {} ({} bytes, SHA-256 {})", file.path, file.bytes, file.sha256))?;
    }
    print_line(&format!("tokens      {}", thousands(lineage.tokens as f64)))?;
    print_line(&format!("operations  {:.2e}", lineage.flops))?;
    print_line(&format!("seed        {}", lineage.seed))?;
    print_line(&format!("metrics     {}", lineage.metrics))?;
    print_line(&format!("software    {}", lineage.software))
}
