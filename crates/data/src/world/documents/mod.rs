//! Raw text: short documents about people, towns, trade and school.
//!
//! A document tells its facts and then tells them again in other words, in a list, in a quotation or
//! from the other end ("The baker is …"). That is how the base model learns from text alone to look
//! something up and to copy it. Questions and instructions never occur.

mod daily;
mod lessons;
mod people;

use super::scene::Scene;

type Make = fn(&mut Scene) -> String;

/// All kinds of documents with their shares.
const KINDS_OF_DOCUMENTS: [(usize, Make); 32] = [
    (4, people::person_entry),
    (2, people::town_entry),
    (2, people::thing_entry),
    (5, people::neighbours),
    (4, people::register),
    (3, people::houses),
    (4, daily::price_list),
    (3, daily::bargain),
    (4, daily::station),
    (2, daily::diary),
    (5, daily::letter),
    (3, daily::sign),
    (3, daily::story),
    (2, daily::script),
    (3, people::landmarks),
    (2, people::meeting),
    (2, people::denial),
    (2, lessons::opposites),
    (2, lessons::plurals),
    (2, lessons::kinds),
    (2, lessons::strangers),
    (3, lessons::sums),
    (2, lessons::shopping),
    (2, lessons::number_order),
    (2, lessons::alphabet),
    (2, lessons::counting),
    (1, lessons::calendar),
    (2, lessons::past),
    (2, lessons::echo),
    (1, lessons::work_and_sounds),
    (2, lessons::opinions),
    (2, lessons::post),
];

/// One document.
pub(super) fn document(scene: &mut Scene) -> String {
    let total: usize = KINDS_OF_DOCUMENTS.iter().map(|(share, _)| share).sum();
    let mut ticket = scene.random.below(total);
    for (share, make) in KINDS_OF_DOCUMENTS {
        if ticket < share {
            return make(scene);
        }
        ticket -= share;
    }
    people::person_entry(scene)
}
