//! Trials: stopped and continued they come to the same result, and they are never trained twice.

use std::fs::{self, File};
use std::path::Path;

use strata_data::world::{self, Part, World};
use strata_model::Home;
use strata_tensor::{Cpu, Isa, Precision};
use strata_train::{Event, Machine, Overrides, Stop, Study, TrialRequest, Workplace};

fn machine() -> Machine {
    Machine { cpu: Cpu::new(Isa::best(), 2).unwrap(), precision: Precision::Bf16 }
}

fn study(folder: &Path, home: &str) -> Study {
    let text = folder.join("text.txt");
    if !text.exists() {
        world::write_text(File::create(&text).unwrap(), World::new(1).base_text(Part::Training, 60_000))
            .unwrap();
    }
    let (home, machine, stop) = (Home::new(folder.join(home)), machine(), Stop::default());
    let mut place =
        Workplace { home: &home, machine: &machine, stop: &stop, progress: &mut |_| {}, restart: false };
    Study::open("study", &[text], Some(400), &mut place).unwrap()
}

fn request(mixer: &str) -> TrialRequest {
    let overrides = Overrides {
        mixer: Some(mixer.into()),
        width: Some(32),
        layers: Some(2),
        sequence: Some(64),
        rows: Some(4),
        ..Overrides::default()
    };
    TrialRequest { overrides, tokens: 6_000, seed: 3 }
}

#[test]
fn a_trial_that_was_stopped_comes_to_the_same_result() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine();
    let whole = study(folder.path(), "whole");
    let trial = whole.plan(&request("attention")).unwrap();
    let expected = whole.train(&trial, &machine, &Stop::default(), &mut |_| {}).unwrap().unwrap();

    let parts = study(folder.path(), "parts");
    assert_eq!(parts.plan(&request("attention")).unwrap(), trial);
    for stop_at in [7, 16] {
        let stop = Stop::default();
        let asked = stop.clone();
        let mut progress = |event: Event| {
            if matches!(event, Event::Step(report) if report.step == stop_at) {
                asked.ask();
            }
        };
        assert_eq!(parts.train(&trial, &machine, &stop, &mut progress).unwrap(), None);
        assert_eq!(parts.finished(&trial, machine.precision).unwrap(), None);
    }
    let mut found = parts.train(&trial, &machine, &Stop::default(), &mut |_| {}).unwrap().unwrap();
    found.seconds = expected.seconds;
    assert_eq!(found, expected);
    assert_eq!(expected.curve.len(), 11, "measured at the start and ten times: {:?}", expected.curve);
    assert!(expected.loss < expected.curve[0].loss);
    assert_eq!((expected.tokens, expected.steps), (trial.tokens(), trial.tokens() / 256));
}

#[test]
fn a_finished_trial_is_read_and_another_is_not_mistaken_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let machine = machine();
    let study = study(folder.path(), "home");
    let trial = study.plan(&request("attention")).unwrap();
    let first = study.train(&trial, &machine, &Stop::default(), &mut |_| {}).unwrap().unwrap();
    let mut steps = 0;
    let mut count = |event: Event| steps += u64::from(matches!(event, Event::Step(_)));
    assert_eq!(study.train(&trial, &machine, &Stop::default(), &mut count).unwrap(), Some(first.clone()));
    assert_eq!(steps, 0);
    let others = [
        TrialRequest { seed: 4, ..request("attention") },
        TrialRequest { tokens: 7_000, ..request("attention") },
        request("ssm"),
        TrialRequest {
            overrides: Overrides { learning_rate: Some(1e-3), ..request("attention").overrides },
            ..request("attention")
        },
    ];
    for other in others {
        let trial = study.plan(&other).unwrap();
        assert_eq!(study.finished(&trial, machine.precision).unwrap(), None, "{other:?}");
    }
    assert_eq!(study.finished(&trial, Precision::F32).unwrap(), None);
    let left: Vec<_> = fs::read_dir(study.folder().join("trials")).unwrap().collect();
    assert_eq!(left.len(), 1, "checkpoints of finished trials are removed");
}
