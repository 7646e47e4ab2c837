//! A folder of its own for each test of the real program: a home, and a text of the sample world in `text.txt`.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use strata_data::world::{self, Part, World};

pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let place = Place { folder: tempfile::tempdir().unwrap() };
        world::write_text(place.create("text.txt"), World::new(2).base_text(Part::Training, 60_000)).unwrap();
        place
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A new file in the folder.
    pub fn create(&self, name: &str) -> File {
        File::create(self.path().join(name)).unwrap()
    }

    pub fn home(&self) -> PathBuf {
        self.path().join("home")
    }

    pub fn command(&self, arguments: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_strata"));
        command.args(arguments.split_whitespace()).current_dir(self.path());
        command.env("STRATA_HOME", self.home()).env_remove("STRATA_ISA").stdin(Stdio::null());
        command
    }

    pub fn run(&self, arguments: &str) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that must succeed, and gives the one object on standard output, and what it says beside that.
    pub fn json_and_messages(&self, arguments: &str) -> (Value, String) {
        let output = self.run(arguments);
        let (out, errors) = (text(&output.stdout), text(&output.stderr));
        assert!(output.status.success(), "{arguments}\n{errors}");
        assert_eq!(out.lines().count(), 1, "one JSON object and nothing else: {out}");
        (serde_json::from_str(&out).unwrap(), errors)
    }

    pub fn json(&self, arguments: &str) -> Value {
        self.json_and_messages(arguments).0
    }

    /// Runs a command that must fail with `code`, and gives its messages.
    pub fn fails(&self, arguments: &str, code: i32) -> String {
        let output = self.run(arguments);
        let errors = text(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments}\n{errors}");
        assert!(output.stdout.is_empty(), "results only on stdout: {}", text(&output.stdout));
        errors
    }
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
