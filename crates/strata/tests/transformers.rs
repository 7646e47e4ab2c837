//! A model that Strata wrote is opened by Hugging Face's `transformers` as it lies there, and gives the same logits
//! and the same tokens. Needs a Python with `transformers` and `torch`, named by `STRATA_PYTHON`.

use std::fs;
use std::process::{Command, Stdio};

use serde_json::Value;
use strata_data::world::{self, Part, World};
use strata_data::{Message, Role, Tokenizer};
use strata_model::{Decoder, Inference, Input, Wanted};
use strata_tensor::{Cpu, Isa};

const READ: &str = r#"
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, text = sys.argv[1], sys.argv[2]
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, return_dict=True)
ids = chat["input_ids"]
with torch.no_grad():
    logits = model(torch.tensor([ids])).logits[0]
print(json.dumps({"class": type(model).__name__, "ids": ids, "logits": logits.flatten().tolist()}))
"#;

#[test]
fn transformers_opens_a_trained_model_and_computes_the_same() {
    let Some(python) = std::env::var_os("STRATA_PYTHON") else {
        eprintln!("SKIPPED: STRATA_PYTHON names no Python with transformers and torch");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let corpus = folder.path().join("text.txt");
    let world = World::new(3);
    let text = world.base_text(Part::Training, 60_000);
    world::write_text(fs::File::create(&corpus).unwrap(), text).unwrap();
    let attention = "heads = 4\nkv_heads = 2\nffn = 96";
    let states = "state = 32\nstate_head_dim = 16\nstate_groups = 2";
    for (mixer, recipe, class, tied) in [
        ("attention", attention, "LlamaForCausalLM", true),
        ("attention", attention, "LlamaForCausalLM", false),
        ("ssm", states, "Mamba2ForCausalLM", true),
        ("ssm", states, "Mamba2ForCausalLM", false),
    ] {
        let common = "vocab_size = 400\nwidth = 64\nlayers = 3\nsequence = 128";
        fs::write(folder.path().join("recipe.toml"), format!("{common}\n{recipe}\ntied = {tied}\n")).unwrap();
        let trained = Command::new(env!("CARGO_BIN_EXE_strata"))
            .args("train base --corpus text.txt --name m --tokens 20000 --recipe recipe.toml".split(' '))
            .args(["--mixer", mixer])
            .current_dir(folder.path())
            .env("STRATA_HOME", folder.path().join("home"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(trained.status.success(), "{}", String::from_utf8_lossy(&trained.stderr));
        let model = folder.path().join("home/models/m");

        let question = "Where does Lora live? Café 🎉";
        let read = Command::new(&python)
            .args(["-c", READ])
            .arg(&model)
            .arg(question)
            .env("HF_HUB_OFFLINE", "1")
            .output()
            .unwrap();
        assert!(read.status.success(), "{}", String::from_utf8_lossy(&read.stderr));
        let theirs: Value = serde_json::from_slice(&read.stdout).unwrap();
        assert_eq!(theirs["class"], class);

        let tokenizer = Tokenizer::load(&model).unwrap();
        let ids = tokenizer.encode_prompt(&[Message::new(Role::User, question)]).unwrap();
        assert_eq!(serde_json::json!(ids), theirs["ids"]);
        let decoder = Decoder::load(&model).unwrap();
        assert_eq!(decoder.config().tied, tied);
        let cpu = Cpu::new(Isa::best(), 1).unwrap();
        let inference = Inference::new(decoder, &cpu);
        let mut state = inference.new_state();
        let mut input = [Input { state: &mut state, tokens: &ids }];
        let ours = inference.step(&cpu, &mut input, Wanted::All).unwrap();
        let theirs = theirs["logits"].as_array().unwrap();
        assert_eq!(ours.len(), theirs.len());
        for (ours, theirs) in ours.iter().zip(theirs) {
            // Two f32 implementations of three layers: differences of 1e-5, logits of a few units.
            let difference = (*ours as f64 - theirs.as_f64().unwrap()).abs();
            assert!(difference <= 2e-4, "{ours} and {theirs}");
        }
    }
}
