//! Tests of the world as a whole.

use super::*;

#[test]
fn samples() {
    let world = World::new(1);
    for document in world.base_text(Part::Training, 9_000) {
        println!("{document}\n---");
    }
    for task in world.tasks(Part::HeldOut, 2) {
        println!("<{}>\n{}\n=> {}\n", task.family, task.prompt, task.answer);
    }
    for dialogue in world.dialogues(Part::HeldOut, 26) {
        println!("<{}>", dialogue.family);
        for (role, content) in dialogue.messages {
            println!("{}: {content}", role.as_str());
        }
    }
}
