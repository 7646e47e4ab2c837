//! `strata scale` through the real program: a tiny ladder is trained, fitted, drawn, and not trained again.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::Place;
use serde_json::Value;
use strata_data::world::{self, Part, World};

fn place() -> Place {
    let place = Place::new();
    world::write_text(place.create("other.txt"), World::new(3).base_text(Part::Training, 30_000)).unwrap();
    let recipe = "vocab_size = 400\nlayers = 2\nsequence = 64\nrows = 2\n";
    fs::write(place.path().join("recipe.toml"), recipe).unwrap();
    fs::write(place.path().join("larger.toml"), recipe.replace("400", "500")).unwrap();
    place
}

fn trials(place: &Place) -> Vec<PathBuf> {
    let folder = place.home().join("runs/law/trials");
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Fifteen runs, of which at least six take at most an eighth of the largest's compute.
const LADDER: &str = "scale --corpus text.txt --name law --recipe recipe.toml --json \
                      --params 15k 45k 75k --tokens 2k 4k 8k 16k 32k";

#[test]
fn a_ladder_is_trained_once_and_gives_a_law() {
    let place = place();
    let (first, errors) = place.json_and_messages(LADDER);
    assert!(errors.contains("0.4 tokens per parameter"), "a short corpus is said: {errors}");
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

    let files = trials(&place);
    assert_eq!(files.len(), 15, "one file each and nothing beside them: {files:?}");
    let (second, errors) = place.json_and_messages(LADDER);
    assert_eq!((&second["trained"], &second["found"]), (&Value::from(0), &Value::from(15)));
    assert!(!errors.contains("step"), "{errors}");
    assert_eq!(second["laws"], first["laws"]);

    let before: Value = serde_json::from_str(&fs::read_to_string(&files[4]).unwrap()).unwrap();
    fs::remove_file(&files[4]).unwrap();
    let (third, _) = place.json_and_messages(LADDER);
    assert_eq!((&third["trained"], &third["found"]), (&Value::from(1), &Value::from(14)));
    let after: Value = serde_json::from_str(&fs::read_to_string(&files[4]).unwrap()).unwrap();
    assert_eq!(
        (&after["loss"], &after["curve"], &after["key"]),
        (&before["loss"], &before["curve"], &before["key"])
    );

    // The law predicts what it was made for, and nothing else.
    let base = "train base --corpus text.txt --tokens 8k --json --name";
    let (model, errors) = place.json_and_messages(&format!("{base} model --recipe recipe.toml"));
    let predicted = model["predicted_loss"].as_f64().unwrap();
    assert!(predicted > 1.0 && predicted < 8.0, "{predicted}");
    assert!(errors.contains("predicted loss") && errors.contains("actual"), "{errors}");
    let (model, errors) = place.json_and_messages(&format!("{base} other --recipe larger.toml"));
    assert!(model["predicted_loss"].is_null());
    assert!(errors.contains("no loss is predicted") && errors.contains("another tokenizer"), "{errors}");

    let errors = place.fails(&LADDER.replace("text.txt", "other.txt"), 2);
    assert!(errors.contains("another corpus") && errors.contains("--restart"), "{errors}");
}

#[test]
fn a_ladder_that_is_too_short_is_not_trained() {
    let place = place();
    let ladder = "scale --corpus text.txt --name law --recipe recipe.toml --params 15k 45k --tokens 4k 8k";
    let errors = place.fails(ladder, 2);
    assert!(errors.contains("2 runs, 1 size, 1 budget of tokens missing"), "{errors}");
    assert!(trials(&place).is_empty());
    let errors = place.fails("scale --corpus text.txt --name law --params 15k", 2);
    assert!(errors.contains("--tokens"), "{errors}");
}
