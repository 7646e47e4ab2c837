//! `strata`: language models made, judged and served on your own machines.

mod commands;
mod comparison;
mod evaluate;
mod failure;
mod machine;
mod open_files;
mod plots;
mod show;

use clap::{Parser, Subcommand};

// A server makes texts and caches in one thread and drops them in another: docs/decisions/allocator.md.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Make your own language models on machines you already have, and use them there.
#[derive(Parser)]
#[command(name = "strata", version, propagate_version = true, arg_required_else_help = true)]
#[command(after_help = "Example:\n  strata demo --minutes 5.5\n\nModels live in $STRATA_HOME (default: the \
                        platform's data folder).\nSTRATA_ISA=amx|avx512|avx2|portable chooses the instruction set.")]
struct Arguments {
    #[command(flatten)]
    machine: machine::MachineArguments,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a base, a command and a dialogue model in a few minutes and compare them.
    Demo(commands::demo::DemoArguments),
    /// Train one stage: base, command or dialogue.
    Train(commands::train::TrainArguments),
    /// Train a ladder of sizes and find the law that predicts larger runs.
    Scale(commands::scale::ScaleArguments),
    /// Continue a text, or answer it, with a model.
    Generate(commands::generate::GenerateArguments),
    /// Talk with a model.
    Chat(commands::chat::ChatArguments),
    /// Measure a model on tasks or on text.
    Eval(commands::eval::EvalArguments),
    /// Compare architectures on the same data by the same recipe: loss, length, recall, speed, memory.
    Compare(commands::compare::CompareArguments),
    /// List models, or show where one comes from.
    Models(commands::models::ModelsArguments),
    /// Serve models to programs and people: APIs of Cohere and OpenAI, a page to chat on.
    Serve(Box<commands::serve::ServeArguments>),
    /// Make, list and revoke the keys that a server asks for.
    Keys(commands::keys::KeysArguments),
    /// Measure how fast this machine trains and decodes.
    Bench(commands::bench::BenchArguments),
}

fn main() -> std::process::ExitCode {
    // Wrong usage ends here with code 2, and --help with 0.
    let Arguments { machine, command } = Arguments::parse();
    let result = machine.open().and_then(|place| match command {
        Command::Demo(arguments) => commands::demo::run(arguments, &place),
        Command::Train(arguments) => commands::train::run(arguments, &place),
        Command::Scale(arguments) => commands::scale::run(arguments, &place),
        Command::Generate(arguments) => commands::generate::run(arguments, &place),
        Command::Chat(arguments) => commands::chat::run(arguments, &place),
        Command::Eval(arguments) => commands::eval::run(arguments, &place),
        Command::Compare(arguments) => commands::compare::run(arguments, &place),
        Command::Models(arguments) => commands::models::run(arguments, &place),
        Command::Serve(arguments) => commands::serve::run(*arguments, &place),
        Command::Keys(arguments) => commands::keys::run(arguments, &place),
        Command::Bench(arguments) => commands::bench::run(arguments, &place),
    });
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => failure::report(&error),
    }
}
