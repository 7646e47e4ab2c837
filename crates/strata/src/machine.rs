//! What the environment and the global flags say: home, instruction set, threads.

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use serde::Deserialize;
use std::time::Instant;
use strata_kernels::peak::{peak_flops_bf16, peak_flops_f32};
use strata_model::{Home, WeightFormat};
use strata_tensor::{Cpu, Isa, Precision};
use strata_train::Machine;

use crate::failure::BadInput;

/// Flags that every command has.
#[derive(Args)]
pub struct MachineArguments {
    /// Threads that compute [default: the cores this process may use]
    #[arg(long, global = true, value_name = "N")]
    threads: Option<usize>,
    /// Precision of training arithmetic [default: bf16 on x86-64 with AVX2 or more, else f32]
    #[arg(long, global = true, value_enum)]
    precision: Option<PrecisionName>,
}

#[derive(Clone, Copy, ValueEnum)]
enum PrecisionName {
    F32,
    Bf16,
}

/// The flag for what weights are held in while a model writes.
#[derive(Args)]
pub struct WeightsArgument {
    /// What weights are held in [default: bf16]: f32 is the reference, int8 the fastest for one stream
    #[arg(long = "weights", value_enum, value_name = "FORMAT")]
    format: Option<WeightsName>,
}

/// Names of [`WeightFormat`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WeightsName {
    F32,
    Bf16,
    Int8,
}

impl WeightsName {
    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            WeightsName::F32 => "f32",
            WeightsName::Bf16 => "bf16",
            WeightsName::Int8 => "int8",
        }
    }

    /// As the model wants it.
    pub fn format(self) -> WeightFormat {
        match self {
            WeightsName::F32 => WeightFormat::F32,
            WeightsName::Bf16 => WeightFormat::Bf16,
            WeightsName::Int8 => WeightFormat::Int8,
        }
    }
}

/// What weights are held in where nothing is said; `docs/decisions/weights-of-decoding.md` says why.
pub const DEFAULT_WEIGHTS: WeightsName = WeightsName::Bf16;

impl WeightsArgument {
    /// What was asked for, or the default.
    pub fn format(&self) -> WeightFormat {
        self.name().format()
    }

    /// The same by its name.
    pub fn name(&self) -> WeightsName {
        self.format.unwrap_or(DEFAULT_WEIGHTS)
    }
}

/// Where models live and what computes.
pub struct Place {
    /// The home folder.
    pub home: Home,
    /// Threads, instruction set and precision.
    pub machine: Machine,
    /// When the program began.
    pub started: Instant,
}

impl MachineArguments {
    /// Reads the environment and starts the threads.
    pub fn open(&self) -> Result<Place> {
        let started = Instant::now();
        let isa = match std::env::var("STRATA_ISA") {
            Ok(name) => Isa::by_name(&name)
                .map_err(|error| BadInput(error.to_string()))
                .with_context(|| format!("STRATA_ISA={name}"))?,
            Err(_) => Isa::best(),
        };
        let threads = match self.threads {
            Some(0) => return Err(BadInput("--threads must be at least 1".into()).into()),
            Some(threads) => threads,
            None => std::thread::available_parallelism().map_or(1, usize::from),
        };
        let precision = match self.precision {
            Some(PrecisionName::F32) => Precision::F32,
            Some(PrecisionName::Bf16) => Precision::Bf16,
            None if isa.bf16_unit().is_some() => Precision::Bf16,
            None => Precision::F32,
        };
        let cpu = Cpu::new(isa, threads).with_context(|| format!("starting {threads} threads"))?;
        Ok(Place { home: home()?, machine: Machine { cpu, precision }, started })
    }
}

fn home() -> Result<Home> {
    if let Some(path) = std::env::var_os("STRATA_HOME").filter(|path| !path.is_empty()) {
        return Ok(Home::new(path));
    }
    let folders = directories::ProjectDirs::from("", "", "strata").ok_or_else(|| {
        BadInput("there is no home folder; set STRATA_HOME to where models shall live".into())
    })?;
    Ok(Home::new(folders.data_dir()))
}

/// Peak floating-point operations per second of all threads together in the machine's precision, measured for
/// `seconds`.
pub fn peak_flops(machine: &Machine, seconds: f64) -> f64 {
    let (isa, threads) = (machine.cpu.isa(), machine.cpu.threads());
    let peak = match machine.precision {
        Precision::F32 => peak_flops_f32,
        Precision::Bf16 => peak_flops_bf16,
    };
    machine.cpu.map(vec![(); threads], |()| peak(isa, seconds)).iter().sum()
}

/// Bytes per second that all threads together read from memory, each its own part of a buffer several times the size
/// of any last-level cache, measured for `seconds`.
pub fn read_bandwidth(machine: &Machine, seconds: f64) -> f64 {
    let (isa, threads) = (machine.cpu.isa(), machine.cpu.threads());
    // Written to, so that it is memory; as huge pages, as weights are.
    let mut buffer = strata_kernels::buffer::Buffer::new();
    buffer.reserve(READ_BYTES);
    let bytes = buffer.bytes();
    let parts: Vec<&[u8]> = bytes.chunks(bytes.len().div_ceil(threads)).collect();
    machine.cpu.map(parts, |part| strata_kernels::peak::read_bandwidth(isa, part, seconds)).iter().sum()
}

/// Bytes that [`read_bandwidth`] reads.
const READ_BYTES: usize = 1 << 30;

/// A count with an optional suffix: 500, 64k, 10M, 1.5B.
pub fn count(text: &str) -> Result<u64, String> {
    let (number, factor) = match text.char_indices().next_back() {
        Some((at, 'k' | 'K')) => (&text[..at], 1e3),
        Some((at, 'm' | 'M')) => (&text[..at], 1e6),
        Some((at, 'b' | 'B' | 'g' | 'G')) => (&text[..at], 1e9),
        _ => (text, 1.0),
    };
    let value =
        number.parse::<f64>().map_err(|_| "expected a number such as 500, 64k, 10M or 1.5B".to_string())?;
    let count = value * factor;
    if !(1.0..1e18).contains(&count) {
        return Err("expected at least 1 and less than 1e18".to_string());
    }
    Ok(count.round() as u64)
}

/// A positive number of minutes.
pub fn minutes(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(minutes) if minutes > 0.0 && minutes < 1e7 => Ok(minutes),
        _ => Err("expected a number of minutes above 0, for example 5 or 0.5".to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_suffixes() {
        let read = |text| count(text).ok();
        assert_eq!(read("500"), Some(500));
        assert_eq!(read("64k"), Some(64_000));
        assert_eq!(read("1.5B"), Some(1_500_000_000));
        assert_eq!([read("0"), read("-3"), read("many"), read(""), read("nan"), read("1e30")], [None; 6]);
    }
}
