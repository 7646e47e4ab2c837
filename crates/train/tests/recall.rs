//! Models learn to recall: attention finds what it read, and without mixing nothing is better than chance.

use strata_data::RecallTask;
use strata_tensor::{Cpu, Isa, Precision};
use strata_train::{Contestant, Machine, RecallLesson, RecallResult, RunFiles, Stop, run_recall};

fn machine() -> Machine {
    Machine { cpu: Cpu::new(Isa::best(), 1).unwrap(), precision: Precision::F32 }
}

fn learn(
    lesson: &RecallLesson,
    mixer: &str,
    files: Option<&RunFiles>,
    stop_at: Option<u64>,
) -> Option<RecallResult> {
    let contestant = Contestant::try_from(mixer.to_string()).unwrap();
    let stop = Stop::default();
    let mut progress = |event| {
        if let strata_train::Event::Step(report) = event
            && stop_at == Some(report.step)
        {
            stop.ask();
        }
    };
    run_recall(lesson, &contestant, 1, &machine(), files, &stop, &mut progress).unwrap()
}

fn lesson(task: RecallTask, items: usize, steps: u64) -> RecallLesson {
    let lesson = RecallLesson::of(task);
    RecallLesson { items, steps, layers: 2, step_tokens: 1024, learning_rate: 3e-3, ..lesson }
}

#[test]
fn attention_uses_what_it_read_and_no_mixing_guesses() {
    let lesson = lesson(RecallTask::Associative, 4, 300);
    let attention = learn(&lesson, "attention", None, None).unwrap();
    // In so short a lesson it learns which values there were, one of four, and not yet whose they are.
    assert!(attention.accuracy > 10.0 * attention.chance, "{attention:?}");
    let none = learn(&lesson, "none", None, None).unwrap();
    // 1,024 answers of which 16 are right by luck: 4 deviations of such a count are 16 more.
    assert!(none.accuracy < 2.0 * none.chance, "{none:?}");
    assert_eq!((none.answers, none.state_bytes), (1024, 0));
}

#[test]
fn attention_copies_and_no_mixing_guesses() {
    let lesson = lesson(RecallTask::Copy, 8, 300);
    let attention = learn(&lesson, "attention", None, None).unwrap();
    assert!(attention.accuracy > 0.9, "{attention:?}");
    let none = learn(&lesson, "none", None, None).unwrap();
    assert!(none.accuracy < 2.0 * none.chance, "{none:?}");
}

#[test]
fn an_interrupted_lesson_ends_as_one_that_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let files = RunFiles { folder: folder.path().join("lesson"), checkpoint_seconds: 1e9 };
    let lesson = lesson(RecallTask::Needle, 12, 10);
    let whole = learn(&lesson, "ssm", None, None).unwrap();
    assert_eq!(learn(&lesson, "ssm", Some(&files), Some(4)), None);
    let resumed = learn(&lesson, "ssm", Some(&files), None).unwrap();
    // The training loss shown is that of the steps since the interruption; what was learnt is the same.
    assert_eq!(RecallResult { training_loss: whole.training_loss, ..resumed }, whole);
    assert_eq!(whole.by_depth.len(), 5);
}
