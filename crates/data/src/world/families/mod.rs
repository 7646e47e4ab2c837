//! The task families: narrow jobs with one right answer that a program can check.
//!
//! About a third are easy (a keyword decides, or a marked word is copied), fewer than a quarter are hard
//! for a model of a few million parameters (order, counting, arithmetic, two facts joined); the rest look
//! one fact up in a passage or rewrite a sentence.

pub(super) mod classify;
pub(super) mod lists;
mod lookup;
pub(super) mod numbers;
pub(super) mod rewrite;

use super::scene::Scene;

/// A prompt and its answer.
pub(super) type Example = (String, String);

/// How one family makes an example.
pub(super) struct Family {
    pub name: &'static str,
    /// Share of the training pairs. Easy families are learned from fewer.
    pub weight: usize,
    pub make: fn(&mut Scene) -> Example,
}

const fn family(name: &'static str, weight: usize, make: fn(&mut Scene) -> Example) -> Family {
    Family { name, weight, make }
}

/// All families, by rising difficulty.
pub(super) const TABLE: [Family; 39] = [
    family("sentiment", 1, classify::sentiment),
    family("topic", 1, classify::topic),
    family("urgency", 1, classify::urgency),
    family("category", 1, classify::category),
    family("first-item", 1, lists::first_item),
    family("last-item", 1, lists::last_item),
    family("marked-word", 1, lists::marked_word),
    family("repeat", 1, lists::repeat),
    family("opposite", 1, rewrite::opposite),
    family("next-day", 1, numbers::next_day),
    family("next-month", 1, numbers::next_month),
    family("workplace", 1, lookup::workplace),
    family("negate", 1, rewrite::negate),
    family("extract-name", 1, lookup::extract_name),
    family("extract-date", 1, lookup::extract_date),
    family("extract-price", 1, lookup::extract_price),
    family("past-tense", 1, rewrite::past_tense),
    family("third-person", 1, rewrite::third_person),
    family("plural", 1, rewrite::plural),
    family("quote", 1, lists::quote),
    family("initials", 2, rewrite::initials),
    family("summary", 1, rewrite::summary),
    family("form", 1, rewrite::form),
    family("who", 2, lookup::who),
    family("where", 2, lookup::where_from),
    family("job", 2, lookup::job),
    family("colour", 2, lookup::colour),
    family("price", 2, lookup::price),
    family("timetable", 2, lookup::timetable),
    family("yes-no", 2, lookup::yes_no),
    family("odd-one-out", 2, classify::odd_one_out),
    family("join", 2, lookup::join),
    family("compare-prices", 2, numbers::compare_prices),
    family("larger-number", 1, numbers::larger_number),
    family("sort-numbers", 2, numbers::sort_numbers),
    family("sort-words", 2, lists::sort_words),
    family("count", 2, lists::count),
    family("sum", 2, numbers::sum),
    family("change", 2, numbers::change),
];

const fn names() -> [&'static str; TABLE.len()] {
    let mut names = [""; TABLE.len()];
    let mut index = 0;
    while index < TABLE.len() {
        names[index] = TABLE[index].name;
        index += 1;
    }
    names
}

/// The names of all task families, by rising difficulty.
pub const FAMILIES: &[&str] = &names();
