//! The three stages on a tiny world: they follow each other, repeat bit for bit, and survive interruption.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use strata_data::packing::LongExamples;
use strata_data::world::{self, Part, World};
use strata_model::{Decoder, Home, Inference, Input, Lineage, Wanted};
use strata_tensor::{Cpu, Isa, Precision};
use strata_train::{
    BaseRequest, Dial, Event, ExamplesRequest, Finished, Machine, Overrides, Stop, TrainError, Workplace,
    train_base, train_command, train_dialogue,
};

struct Bench {
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let world = World::new(1);
        let create = |name: &str| File::create(folder.path().join(name)).unwrap();
        world::write_text(create("text.txt"), world.base_text(Part::Training, 60_000)).unwrap();
        world::write_pairs(create("pairs.jsonl"), &world.pairs(Part::Training, 200)).unwrap();
        world::write_dialogues(create("dialogues.jsonl"), &world.dialogues(Part::Training, 100)).unwrap();
        Bench { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn base(&self) -> BaseRequest {
        BaseRequest {
            name: "base".into(),
            corpus: vec![self.path("text.txt")],
            dial: Dial { tokens: Some(6_000), ..Dial::default() },
            overrides: Overrides {
                vocab_size: Some(400),
                width: Some(32),
                layers: Some(2),
                heads: Some(2),
                ffn: Some(64),
                sequence: Some(64),
                rows: Some(4),
                ..Overrides::default()
            },
            seed: 3,
        }
    }

    fn examples(&self, name: &str, from: &str, file: &str) -> ExamplesRequest {
        ExamplesRequest {
            name: name.into(),
            from: from.into(),
            data: vec![self.path(file)],
            dial: Dial { tokens: Some(3_000), ..Dial::default() },
            overrides: Overrides { rows: Some(4), ..Overrides::default() },
            long: LongExamples::Drop,
            seed: 4,
        }
    }
}

/// The mixed precision, since it keeps more beside the weights that a checkpoint could forget.
fn machine() -> Machine {
    Machine { cpu: Cpu::new(Isa::best(), 2).unwrap(), precision: Precision::Bf16 }
}

/// Runs `train` in `home`; with `stop_at`, asks for a stop after that step.
fn run(
    home: &Home,
    stop_at: Option<u64>,
    events: &mut Vec<Event>,
    train: impl FnOnce(&mut Workplace<'_>) -> Result<Finished, TrainError>,
) -> Result<Finished, TrainError> {
    let (stop, machine) = (Stop::default(), machine());
    let asked = stop.clone();
    let mut progress = |event: Event| {
        if matches!(&event, Event::Step(report) if Some(report.step) == stop_at) {
            asked.ask();
        }
        events.push(event);
    };
    train(&mut Workplace { home, machine: &machine, stop: &stop, progress: &mut progress, restart: false })
}

fn weights(home: &Home, name: &str) -> Vec<u8> {
    fs::read(home.model(name).unwrap().join("model.safetensors")).unwrap()
}

fn home(bench: &Bench, name: &str) -> Home {
    Home::new(bench.path(name))
}

#[test]
fn stages_follow_each_other_and_leave_their_lineage() {
    let bench = Bench::new();
    let home = home(&bench, "home");
    let events = &mut Vec::new();
    let base = run(&home, None, events, |place| train_base(&bench.base(), place)).unwrap();
    let before = events.iter().find_map(|event| match event {
        Event::Validated { step: 0, validation } => validation.bits_per_byte,
        _ => None,
    });
    // Even a few thousand tokens teach which letters are frequent; a tenth is far beyond rounding.
    let after = base.outcome.validation.unwrap().bits_per_byte;
    assert!(after.unwrap() < 0.9 * before.unwrap(), "{before:?} to {after:?}");
    assert!(base.outcome.tokens >= 6_000 && base.outcome.tokens_per_second > 0.0);

    let command = bench.examples("command", "base", "pairs.jsonl");
    run(&home, None, events, |place| train_command(&command, place)).unwrap();
    let dialogue = bench.examples("dialogue", "command", "dialogues.jsonl");
    let dialogue = run(&home, None, events, |place| train_dialogue(&dialogue, place)).unwrap();
    assert!(dialogue.outcome.training_loss.is_finite());

    assert_eq!(home.models().unwrap(), ["base", "command", "dialogue"]);
    let folder = home.model("dialogue").unwrap();
    let lineage = Lineage::load(&folder).unwrap().unwrap();
    let parent = lineage.parent.unwrap();
    assert_eq!((lineage.stage.as_str(), parent.name.as_str()), ("dialogue", "command"));
    let command_weights =
        strata_model::lineage::sha256_file(&home.model("command").unwrap().join("model.safetensors"));
    assert_eq!(parent.sha256, command_weights.unwrap().sha256);
    assert_eq!(lineage.data.len(), 1);
    // The folder is complete and opens.
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        assert!(folder.join(file).exists(), "{file}");
    }
    assert_eq!(Decoder::load(&folder).unwrap().config().vocab_size, 400);
    assert!(
        !home.run("base").unwrap().join("checkpoints").exists(),
        "what is large goes with the end of the run"
    );
}

#[test]
fn the_same_request_gives_the_same_weights_bit_for_bit() {
    let bench = Bench::new();
    let (one, two) = (home(&bench, "one"), home(&bench, "two"));
    for home in [&one, &two] {
        run(home, None, &mut Vec::new(), |place| train_base(&bench.base(), place)).unwrap();
    }
    assert_eq!(weights(&one, "base"), weights(&two, "base"));
    let other = BaseRequest { seed: 4, ..bench.base() };
    run(&two, None, &mut Vec::new(), |place| train_base(&other, place)).unwrap();
    assert_ne!(weights(&one, "base"), weights(&two, "base"), "the seed matters");
}

#[test]
fn an_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one() {
    let bench = Bench::new();
    let (whole, broken) = (home(&bench, "whole"), home(&bench, "broken"));
    let command = bench.examples("command", "base", "pairs.jsonl");
    for (home, interrupted) in [(&whole, false), (&broken, true)] {
        let base = |stop_at, events: &mut Vec<Event>| {
            run(home, stop_at, events, |place| train_base(&bench.base(), place))
        };
        if interrupted {
            for stop_at in [5, 11] {
                let stopped = base(Some(stop_at), &mut Vec::new()).unwrap();
                assert_eq!((stopped.folder, stopped.outcome.step), (None, stop_at));
            }
            assert!(home.models().unwrap().is_empty(), "no half model appears");
        }
        let mut events = Vec::new();
        base(None, &mut events).unwrap();
        let continued =
            events.iter().any(|event| matches!(event, Event::Note(text) if text.contains("step 11")));
        assert_eq!(continued, interrupted);
        if interrupted {
            run(home, Some(3), &mut Vec::new(), |place| train_command(&command, place)).unwrap();
        }
        run(home, None, &mut Vec::new(), |place| train_command(&command, place)).unwrap();
    }
    assert_eq!(weights(&whole, "base"), weights(&broken, "base"));
    assert_eq!(weights(&whole, "command"), weights(&broken, "command"));
}

#[test]
fn an_interrupted_run_is_not_continued_with_other_settings_or_data() {
    let bench = Bench::new();
    let home = home(&bench, "home");
    run(&home, Some(2), &mut Vec::new(), |place| train_base(&bench.base(), place)).unwrap();
    let other = BaseRequest { seed: 9, ..bench.base() };
    let error = run(&home, None, &mut Vec::new(), |place| train_base(&other, place)).unwrap_err();
    assert!(error.to_string().contains("--restart"), "{error}");
    run(&home, None, &mut Vec::new(), |place| train_base(&bench.base(), place)).unwrap();

    let command = bench.examples("command", "base", "pairs.jsonl");
    run(&home, Some(2), &mut Vec::new(), |place| train_command(&command, place)).unwrap();
    append(&bench.path("pairs.jsonl"), "{\"prompt\": \"new\", \"response\": \"line\"}\n");
    let error = run(&home, None, &mut Vec::new(), |place| train_command(&command, place)).unwrap_err();
    assert!(error.to_string().contains("have changed"), "{error}");
}

#[test]
fn a_run_belongs_to_one_process_at_a_time() {
    let bench = Bench::new();
    let home = home(&bench, "home");
    let _taken = strata_train::run::Run::take(&home, "base", false).unwrap();
    let error = run(&home, None, &mut Vec::new(), |place| train_base(&bench.base(), place)).unwrap_err();
    assert!(error.to_string().contains("another process"), "{error}");
}

fn append(path: &Path, text: &str) {
    let before = fs::read_to_string(path).unwrap();
    fs::write(path, before + text).unwrap();
}

#[test]
fn every_mixer_goes_through_the_stages_and_hands_itself_down() {
    for mixer in ["ssm", "lstm", "s4d", "none", "hybrid:SA"] {
        let (bench, home) = (Bench::new(), tempfile::tempdir().unwrap());
        let home = Home::new(home.path());
        let mut base = bench.base();
        base.dial.tokens = Some(2_000);
        base.overrides.mixer = Some(mixer.into());
        if mixer != "hybrid:SA" {
            base.overrides.heads = None;
        }
        if mixer == "ssm" {
            base.overrides.ffn = None;
        }
        let mut events = Vec::new();
        run(&home, None, &mut events, |place| train_base(&base, place)).unwrap();
        let mut request = bench.examples("command", "base", "pairs.jsonl");
        request.dial.tokens = Some(1_000);
        run(&home, None, &mut events, |place| train_command(&request, place)).unwrap();
        let mut request = bench.examples("dialogue", "command", "dialogues.jsonl");
        request.dial.tokens = Some(1_000);
        run(&home, None, &mut events, |place| train_dialogue(&request, place)).unwrap();
        let decoder = Decoder::load(&home.model("dialogue").unwrap()).unwrap();
        assert_eq!(decoder.config().mixing.name(2), mixer);

        // Greedy writing with a state gives what reading everything again gives.
        let cpu = Cpu::new(Isa::best(), 2).unwrap();
        let model = Inference::new(decoder, &cpu);
        let best =
            |logits: &[f32]| (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        let mut tokens = vec![5u32, 6, 7];
        let mut state = model.new_state();
        for _ in 0..20 {
            let unread = tokens[state.len()..].to_vec();
            let mut input = [Input { state: &mut state, tokens: &unread }];
            let logits = model.step(&cpu, &mut input, Wanted::Last).unwrap();
            let mut fresh = model.new_state();
            let mut input = [Input { state: &mut fresh, tokens: &tokens }];
            assert_eq!(model.step(&cpu, &mut input, Wanted::Last).unwrap(), logits, "{mixer}");
            tokens.push(best(&logits) as u32);
        }
    }
}

#[test]
fn an_interrupted_run_is_not_continued_with_another_mixer() {
    let (bench, home) = (Bench::new(), tempfile::tempdir().unwrap());
    let home = Home::new(home.path());
    let mut base = bench.base();
    (base.overrides.mixer, base.overrides.heads, base.overrides.ffn) = (Some("ssm".into()), None, None);
    let mut events = Vec::new();
    run(&home, Some(3), &mut events, |place| train_base(&base, place)).unwrap();
    let other = BaseRequest {
        overrides: Overrides { mixer: Some("lstm".into()), ..base.overrides.clone() },
        ..base.clone()
    };
    let message = run(&home, None, &mut events, |place| train_base(&other, place)).unwrap_err().to_string();
    assert!(message.contains("--restart"), "{message}");
    run(&home, None, &mut events, |place| train_base(&base, place)).unwrap();
    let unknown = BaseRequest {
        name: "x".into(),
        overrides: Overrides { mixer: Some("rnn".into()), ..base.overrides.clone() },
        ..base
    };
    let error = run(&home, None, &mut events, |place| train_base(&unknown, place)).unwrap_err();
    assert!(matches!(&error, TrainError::Request(text) if text.contains("lstm")), "{error}");
}
