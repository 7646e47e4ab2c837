use std::path::Path;

use proptest::prelude::*;
use serde_json::Value;

use super::read::quote_infinity;
use super::*;
use crate::ModelError;
use crate::mixers::{Positions, SsmShape};

fn parse(text: &str) -> Result<Config, ModelError> {
    Config::parse(text, Path::new("config.json"))
}

fn fixture(family: &str, file: &str) -> Option<String> {
    let shared = std::env::var("STRATA_SHARED")
        .unwrap_or_else(|_| concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared").to_string());
    let path = Path::new(&shared).join("fixtures/hf").join(family).join(file);
    let text = std::fs::read_to_string(&path).ok();
    if text.is_none() {
        eprintln!("SKIPPED: no fixture at {}", path.display());
    }
    text
}

#[test]
fn both_spellings_of_the_fixtures_give_one_config() {
    for family in ["llama", "llama3"] {
        let (Some(new), Some(old)) = (fixture(family, "config.json"), fixture(family, "config.legacy.json"))
        else {
            return;
        };
        let (new, old) = (parse(&new).unwrap(), parse(&old).unwrap());
        assert_eq!(new, old, "{family}");
        assert_eq!((new.width, new.kv_heads, new.rope_scaling.is_some()), (64, 2, family == "llama3"));
    }
}

#[test]
fn other_families_are_refused_by_the_field_that_tells() {
    for family in ["gpt2", "cohere"] {
        let Some(text) = fixture(family, "config.json") else { return };
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.contains("architectures"), "{family}: {message}");
    }
}

#[test]
fn left_out_fields_have_the_defaults_of_llama() {
    let config = parse(r#"{"model_type": "llama", "vocab_size": 128256}"#).unwrap();
    assert_eq!((config.width, config.heads, config.kv_heads, config.head_dim), (4096, 32, 32, 128));
    assert_eq!((config.bos, config.eos.as_slice()), (Some(1), &[2][..]));
    assert_eq!((config.rope_theta, config.norm_epsilon), (10000.0, 1e-6));
}

#[test]
fn what_is_not_computed_is_refused_by_name() {
    for (field, value) in [
        ("attention_bias", "true"),
        ("mlp_bias", "true"),
        ("hidden_act", "\"gelu\""),
        ("rope_scaling.rope_type", "{\"rope_type\": \"yarn\"}"),
        ("rope_parameters.factor", "{\"rope_type\": \"llama3\"}"),
        ("num_key_value_heads", "5"),
        ("num_hidden_layers", "-1"),
        ("num_hidden_layers", "0"),
        ("num_attention_heads", "0"),
        ("head_dim", "3"),
        ("vocab_size", "1e30"),
        ("eos_token_id", "[2, \"x\"]"),
        ("eos_token_id", "[2, 40000]"),
        ("rms_norm_eps", "0"),
    ] {
        let key = field.split('.').next().unwrap();
        let text = format!(r#"{{"architectures": ["LlamaForCausalLM"], "{key}": {value}}}"#);
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.contains(&format!("\"{field}\"")), "{field}: {message}");
    }
}

#[test]
fn mamba2_is_read_in_both_spellings_and_written_so_that_it_is_read_back() {
    let (Some(new), Some(old)) = (fixture("mamba2", "config.json"), fixture("mamba2", "config.legacy.json"))
    else {
        return;
    };
    let (new, old) = (parse(&new).unwrap(), parse(&old).unwrap());
    assert_eq!(new, old);
    assert_eq!((new.mixing.ssm.groups, new.mixing.ssm.longest, new.norm_epsilon), (2, None, 1e-3));
    assert_eq!(parse(&new.to_json().to_string()).unwrap(), new);
    let mut limited = new;
    (limited.mixing.ssm.shortest, limited.mixing.ssm.longest) = (0.01, None);
    assert_eq!(parse(&limited.to_json().to_string()).unwrap(), limited);
}

#[test]
fn infinity_inside_a_string_stays_what_it_is() {
    let text = r#"{"a": "Infinity \" Infinity", "b": [Infinity, "\\"], "c": Infinity}"#;
    let value: Value = serde_json::from_str(&quote_infinity(text)).unwrap();
    assert_eq!(value["a"], "Infinity \" Infinity");
    assert_eq!(value["b"][0]["__float__"], "Infinity");
    assert_eq!(value["c"]["__float__"], "Infinity");
}

#[test]
fn mixers_that_do_not_fit_are_refused_by_name() {
    for (class, field, value) in [
        ("Mamba2ForCausalLM", "num_heads", "7"),
        ("Mamba2ForCausalLM", "n_groups", "3"),
        ("Mamba2ForCausalLM", "state_size", "0"),
        ("Mamba2ForCausalLM", "use_bias", "true"),
        ("Mamba2ForCausalLM", "use_conv_bias", "false"),
        ("Mamba2ForCausalLM", "time_step_limit", "[1.0, 0.5]"),
        ("Mamba2ForCausalLM", "time_step_limit", "[0.0, \"x\"]"),
        ("StrataForCausalLM", "mixing", "{\"patern\": \"S\"}"),
        ("StrataForCausalLM", "mixing.pattern", "{\"pattern\": \"SXA\"}"),
        ("StrataForCausalLM", "mixing.pattern", "{\"pattern\": \"\"}"),
        ("StrataForCausalLM", "mixing.window", "{\"window\": 0}"),
        ("StrataForCausalLM", "mixing", "{\"positions\": \"sine\"}"),
        ("StrataForCausalLM", "mixing.s4d_states", "{\"pattern\": \"D\", \"s4d_states\": 7}"),
        ("StrataForCausalLM", "mixing.ssm.head_dim", "{\"pattern\": \"SA\", \"ssm\": {\"head_dim\": 60}}"),
    ] {
        let key = if class.starts_with("Strata") { "mixing" } else { field };
        let text = format!(r#"{{"architectures": ["{class}"], "{key}": {value}}}"#);
        let message = parse(&text).unwrap_err().to_string();
        assert!(message.contains(&format!("\"{field}\"")), "{field}: {message}");
    }
}

proptest! {
    #[test]
    fn what_is_written_is_read_back(
        (kv_heads, group, half) in (1usize..5, 1usize..5, 1usize..40),
        (layers, width, ffn, tied) in (1usize..9, 1usize..300, 1usize..300, any::<bool>()),
        bos in proptest::option::of(0u32..300),
        eos in proptest::collection::vec(0u32..300, 0..3),
        epsilon in 1e-8f32..1e-2,
        llama3 in any::<bool>(),
        pattern in "[ASLDN]{1,5}",
        window in proptest::option::of(1usize..100),
        longest in proptest::option::of((2u32..36).prop_map(|quarters| f64::from(quarters) / 4.0)),
    ) {
        let config = Config {
            vocab_size: 300, width, layers, heads: kv_heads * group, kv_heads, head_dim: 2 * half, ffn,
            max_positions: 77, norm_epsilon: epsilon, rope_theta: 12345.5,
            rope_scaling: llama3.then_some(Llama3Scaling {
                factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.5, original_max_positions: 64,
            }),
            tied, bos, eos,
            mixing: Mixing {
                pattern,
                ssm: SsmShape { head_dim: 2, expand: 2, longest, ..SsmShape::default() },
                positions: [Positions::Rotary, Positions::Alibi, Positions::None][layers % 3],
                window,
                ..Mixing::default()
            },
        };
        let read = parse(&config.to_json().to_string()).unwrap();
        // What no block of the family has is not written.
        let mut expected = config;
        if expected.family() == Family::Llama {
            expected.mixing = Mixing::default();
        }
        prop_assert_eq!(read, expected);
    }

    #[test]
    fn no_text_panics(text in ".{0,200}") {
        let _ = parse(&text);
    }
}
