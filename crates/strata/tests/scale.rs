//! `strata scale` through the real program: a tiny ladder is trained, fitted, drawn, and not trained again.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use strata_data::world::{self, Part, World};

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let folder = tempfile::tempdir().unwrap();
        let text = File::create(folder.path().join("text.txt")).unwrap();
        world::write_text(text, World::new(2).base_text(Part::Training, 60_000)).unwrap();
        let other = File::create(folder.path().join("other.txt")).unwrap();
        world::write_text(other, World::new(3).base_text(Part::Training, 30_000)).unwrap();
        let recipe = "vocab_size = 400\nlayers = 2\nsequence = 64\nrows = 2\n";
        fs::write(folder.path().join("recipe.toml"), recipe).unwrap();
        fs::write(folder.path().join("larger.toml"), recipe.replace("400", "500")).unwrap();
        Place { folder }
    }

    /// Exit code, standard output, standard error.
    fn run(&self, arguments: &str) -> (Option<i32>, String, String) {
        let output = Command::new(env!("CARGO_BIN_EXE_strata"))
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .env("STRATA_HOME", self.folder.path().join("home"))
            .env_remove("STRATA_ISA")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    }

    fn json(&self, arguments: &str) -> (Value, String) {
        let (code, out, errors) = self.run(arguments);
        assert_eq!(code, Some(0), "{arguments}\n{errors}");
        assert_eq!(out.lines().count(), 1, "one JSON object and nothing else: {out}");
        (serde_json::from_str(&out).unwrap(), errors)
    }

    fn trials(&self) -> Vec<PathBuf> {
        let folder = self.folder.path().join("home/runs/law/trials");
        let mut files: Vec<PathBuf> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// Fifteen runs, of which at least six take at most an eighth of the largest's compute.
const LADDER: &str = "scale --corpus text.txt --name law --recipe recipe.toml --json \
                      --params 15k 45k 75k --tokens 2k 4k 8k 16k 32k";

#[test]
fn a_ladder_is_trained_once_and_gives_a_law() {
    let place = Place::new();
    let (first, _) = place.json(LADDER);
    assert_eq!((&first["trained"], &first["found"]), (&Value::from(15), &Value::from(0)));
    let law = &first["laws"][0];
    assert_eq!(law["mixer"], "attention");
    for number in ["e", "a", "b", "alpha", "beta"] {
        let value = law["law"][number].as_f64().unwrap();
        assert!(value.is_finite() && value > 0.0, "{number}: {value}");
        let (low, high) = (&law["intervals"][number][0], &law["intervals"][number][1]);
        assert!(low.as_f64().unwrap() <= high.as_f64().unwrap(), "{number}: {low} to {high}");
    }
    let test = &law["test"];
    assert!(test["runs"].as_u64().unwrap() >= 6, "{test}");
    assert!(test["predicted"].as_f64().unwrap() > 0.0 && test["error_percent"].as_f64().unwrap().is_finite());
    assert!(test["most_flops"].as_f64().unwrap() <= test["run"]["flops"].as_f64().unwrap() / 8.0);
    let runs = law["runs"].as_array().unwrap();
    assert_eq!(runs.len(), 15);
    for run in runs {
        assert!(run["bits_per_byte"].as_f64().unwrap() > 0.0);
        let curve = run["curve"].as_array().unwrap();
        assert_eq!(curve[0]["tokens"], 0);
        let last = curve.last().unwrap();
        assert_eq!(
            (&last["tokens"], &last["loss"]),
            (&run["tokens"], &run["loss"]),
            "the curve ends at the result"
        );
    }
    let svg = fs::read_to_string(law["figures"][0].as_str().unwrap()).unwrap();
    assert!(svg.contains("best use of compute") && svg.contains("predicted, unseen"));
    assert!(fs::read(law["figures"][1].as_str().unwrap()).unwrap().starts_with(b"\x89PNG"));
    let written = fs::read_to_string(Path::new(first["path"].as_str().unwrap()).join("scale.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&written).unwrap(), first);

    let trials = place.trials();
    assert_eq!(trials.len(), 15, "one file each and nothing beside them: {trials:?}");
    let (second, errors) = place.json(LADDER);
    assert_eq!((&second["trained"], &second["found"]), (&Value::from(0), &Value::from(15)));
    assert!(!errors.contains("step"), "{errors}");
    assert_eq!(second["laws"], first["laws"]);

    let before: Value = serde_json::from_str(&fs::read_to_string(&trials[4]).unwrap()).unwrap();
    fs::remove_file(&trials[4]).unwrap();
    let (third, _) = place.json(LADDER);
    assert_eq!((&third["trained"], &third["found"]), (&Value::from(1), &Value::from(14)));
    let after: Value = serde_json::from_str(&fs::read_to_string(&trials[4]).unwrap()).unwrap();
    assert_eq!(
        (&after["loss"], &after["curve"], &after["key"]),
        (&before["loss"], &before["curve"], &before["key"])
    );

    // The law predicts what it was made for, and nothing else.
    let base = "train base --corpus text.txt --tokens 8k --json --name";
    let (model, errors) = place.json(&format!("{base} model --recipe recipe.toml"));
    let predicted = model["predicted_loss"].as_f64().unwrap();
    assert!(predicted > 1.0 && predicted < 8.0, "{predicted}");
    assert!(errors.contains("predicted loss") && errors.contains("actual"), "{errors}");
    let (model, errors) = place.json(&format!("{base} other --recipe larger.toml"));
    assert!(model["predicted_loss"].is_null());
    assert!(errors.contains("no loss is predicted") && errors.contains("another tokenizer"), "{errors}");

    let (code, _, errors) = place.run(&LADDER.replace("text.txt", "other.txt"));
    assert_eq!(code, Some(2));
    assert!(errors.contains("another corpus") && errors.contains("--restart"), "{errors}");
}

#[test]
fn a_ladder_that_is_too_short_is_not_trained() {
    let place = Place::new();
    let (code, out, errors) =
        place.run("scale --corpus text.txt --name law --recipe recipe.toml --params 15k 45k --tokens 4k 8k");
    assert_eq!((code, out.as_str()), (Some(2), ""));
    assert!(errors.contains("2 runs, 1 size, 1 budget of tokens missing"), "{errors}");
    assert!(place.trials().is_empty());
    let (code, _, errors) = place.run("scale --corpus text.txt --name law --params 15k");
    assert_eq!(code, Some(2));
    assert!(errors.contains("--tokens"), "{errors}");
}
