//! `strata compare` through the real binary: small, whole, and never twice.

mod common;

use std::fs;

use common::{Place, text};

const COMPARE: &str = "compare --corpus text.txt --name mixers --mixers attention,hybrid:SA+window=8,none --tokens 6k \
                       --params 200k --seeds 2 --vocab 300 --sequence 32 --lengths 32,64 --recall-steps 3 --threads 1 \
                       --parallel 2";

#[test]
fn mixers_are_compared_once_and_reported_whenever_asked() {
    let place = Place::new();
    // Only a plan, then one part after the other, then everything: nothing is done twice.
    place.json(&format!("{COMPARE} --only plan --json"));
    let speed = place.json("compare --name mixers --only speed --json");
    assert_eq!(speed["speeds"].as_array().unwrap().len(), 6);
    assert!(speed["rows"][0]["bits_per_byte"].is_null(), "nothing is trained yet");
    let all = place.json(&format!("{COMPARE} --json"));
    let folder = place.home().join("runs/mixers");
    let rows = all["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["mixer"].as_str().unwrap()).collect();
    assert_eq!(names, ["attention", "hybrid:SA+window=8", "none"]);
    let parameters: Vec<f64> = rows.iter().map(|row| row["parameters"].as_f64().unwrap()).collect();
    for row in rows {
        let count = row["parameters"].as_f64().unwrap();
        assert!((count / parameters[0] - 1.0).abs() < 0.03, "{parameters:?}");
        assert_eq!(row["bits_per_byte"]["values"].as_array().unwrap().len(), 2);
        assert!(row["bits_per_byte"]["mean"].as_f64().unwrap() > 0.0);
        for field in ["flops", "tokens_per_second", "utilisation"] {
            assert!(row[field].as_f64().unwrap() > 0.0, "{field}: {row}");
        }
        // 1, 2, 4 and 8 times the trained length; three tasks of recall.
        assert_eq!(row["by_multiple"].as_array().unwrap().len(), 4, "{row}");
        assert_eq!(row["recall"].as_array().unwrap().len(), 3);
    }
    assert!(rows[0]["growth_per_token"].as_f64().unwrap() > 0.0);
    assert_eq!((&rows[1]["growth_per_token"], &rows[2]["state_bytes"]), (&0.0.into(), &0.into()));
    let streamed = &all["memory"][1];
    assert_eq!(streamed["streamed"], 100_000);
    assert_eq!(streamed["state_before"], streamed["state_after"]);
    for file in
        ["compare.json", "compare.md", "loss.svg", "loss.png", "speed.svg", "length.svg", "length.png"]
    {
        assert!(fs::metadata(folder.join(file)).unwrap().len() > 0, "{file}");
    }
    let table = fs::read_to_string(folder.join("compare.md")).unwrap();
    assert!(table.contains("| hybrid:SA+window=8 |") && table.contains("| chance |"), "{table}");

    let files = |part: &str| {
        let mut files: Vec<_> =
            fs::read_dir(folder.join(part)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
            .into_iter()
            .map(|path| (fs::metadata(&path).unwrap().modified().unwrap(), path))
            .collect::<Vec<_>>()
    };
    let before = (files("results"), files("trials"));
    assert_eq!(before.0.len(), 6 + 6 + 18 + 6 + 3);
    assert_eq!(place.json(&format!("{COMPARE} --json")), all, "a second call finds everything done");
    assert_eq!((files("results"), files("trials")), before);
    // From the folder alone, and with a seed that is still missing.
    fs::remove_file(folder.join("results/loss-none-2.json")).unwrap();
    let report = place.run("compare --name mixers --only report");
    assert!(text(&report.stdout).contains("(1 of 2 seeds)"), "{}", text(&report.stderr));
    // The trial itself is still there, and is read.
    assert_eq!(place.json("compare --name mixers --only loss --json"), all);
}

#[test]
fn an_interrupted_plan_and_wrong_settings_are_told_with_code_2() {
    let place = Place::new();
    let with = |what: &str| format!("compare --corpus text.txt --name x --tokens 6k {what}");
    for (wrong, expected) in [
        ("--mixers attention,mamba", "attention, ssm"),
        ("--mixers hybrid:SQ", "S (ssm)"),
        ("--mixers ssm+state_head_dim=48 --vocab 300 --params 200k", "divisor"),
        ("--mixers none,none", "twice"),
        ("--seeds 0", "0"),
        ("--lengths 3", "16 to"),
    ] {
        let message = place.fails(&with(wrong), 2);
        assert!(message.contains(expected), "{wrong}: {message}");
    }
    place.fails("compare --corpus text.txt --name x --minutes 0", 2);
    place.fails("compare --corpus text.txt --name x --minutes 1 --tokens 5", 2);
    place.fails("compare --name x --seeds 2", 2);
    assert!(place.fails("compare --name nowhere", 2).contains("--corpus"));
    assert!(place.fails("compare --corpus absent.txt --name gone --tokens 6k", 2).contains("absent.txt"));

    let train = "train base --corpus text.txt --name taken --tokens 1k --json";
    place.json(train);
    let message = place.fails("compare --corpus text.txt --name taken --tokens 6k", 2);
    assert!(message.contains("another kind of run"), "{message}");

    let small = "--mixers none --vocab 300 --params 200k --sequence 32 --seeds 1";
    place.json(&with(&format!("{small} --only plan --json")));
    let message = place.fails(&with(&format!("{small} --only plan")).replace("--seeds 1", "--seeds 2"), 2);
    assert!(message.contains("seeds was 1 and is now 2"), "{message}");
    assert!(place.fails(&train.replace("taken", "x"), 2).contains("comparison"), "a base run would break it");
}
