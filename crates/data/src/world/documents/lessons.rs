//! Raw text from schools, shops and the post: the general knowledge that the task families rely on.

use crate::world::families::classify::{call, kinds_of_words, note, odd_group, review};
use crate::world::families::lists::words_to_sort;
use crate::world::families::numbers::{spelled, three_numbers, two_numbers};
use crate::world::families::rewrite::{opposites as all_opposites, plurals as all_plurals};
use crate::world::passages::sentences;
use crate::world::scene::Scene;
use crate::world::words::{
    ACTIONS, DAYS, JOBS, MONTHS, NUMBERS, PETS, SIGHTS, THINGS, capitalised, coins, joined, with_article,
};

/// A class room: `In the school of … … teaches`.
fn class(scene: &mut Scene, subject: &str) -> String {
    let (town, name) = (scene.town(), scene.name());
    match scene.random.below(2) {
        0 => format!("In the school of {town}, {name} teaches {subject}."),
        _ => format!("{name} learns {subject} in {town}."),
    }
}

/// Opposites, one by one and in rows.
pub(super) fn opposites(scene: &mut Scene) -> String {
    let opening = class(scene, "opposites");
    let table = all_opposites();
    let told = scene.random.pick_distinct(&table, 4);
    let facts = sentences(told.iter().map(|(one, other)| format!("The opposite of {one} is {other}.")));
    let row = scene.combination("opposites", &table, 2, |pair| pair[0].0 != pair[1].1);
    format!("{opening} {facts}\n{}, {}\n{}, {}", row[0].0, row[1].0, row[0].1, row[1].1)
}

/// Plurals, one by one and in rows.
pub(super) fn plurals(scene: &mut Scene) -> String {
    let opening = class(scene, "plurals");
    let all = all_plurals();
    let many = |noun: &str| all.iter().find(|(one, _)| *one == noun).map_or("", |(_, many)| many.as_str());
    let nouns: Vec<&str> = all.iter().map(|(noun, _)| *noun).collect();
    let told = scene.random.pick_distinct(&nouns, 4);
    let facts = sentences(told.iter().map(|noun| match scene.random.below(2) {
        0 => format!("One {noun}, two {}.", many(noun)),
        _ => format!("The plural of {noun} is {}.", many(noun)),
    }));
    let row = scene.combination("plurals", &nouns, 2, |pair| pair[0] != pair[1]);
    format!("{opening} {facts}\n{}, {}\n{}, {}", row[0], row[1], many(row[0]), many(row[1]))
}

/// What kind of thing each thing is.
pub(super) fn kinds(scene: &mut Scene) -> String {
    let opening = class(scene, "the kinds of things");
    let all = kinds_of_words();
    let told = scene.random.pick_distinct(&all, 4);
    let facts = sentences(told.iter().map(|(word, kind)| {
        // Metals and drinks are not counted.
        let named = if ["metal", "drink"].contains(kind) { word.to_string() } else { with_article(word) };
        format!("{} is {}.", capitalised(&named), with_article(kind))
    }));
    let row = scene.combination("kinds", &all, 2, |pair| pair[0].1 != pair[1].1);
    format!("{opening} {facts}\n{}, {}\n{}, {}", row[0].0, row[1].0, row[0].1, row[1].1)
}

/// Rows of words with a stranger among them.
pub(super) fn strangers(scene: &mut Scene) -> String {
    let opening = class(scene, "the kinds of things");
    let rows: Vec<String> = (0..2)
        .map(|_| {
            let (group, odd, kind) = odd_group(scene);
            format!("{}: all but {odd} are {kind}s, and the stranger is {odd}.", group.join(", "))
        })
        .collect();
    format!("{opening}\n{}", rows.join("\n"))
}

/// Sums with their results, dry and as a small story.
pub(super) fn sums(scene: &mut Scene) -> String {
    let opening = class(scene, "sums");
    let facts = sentences((0..4).map(|_| {
        let (one, other) = (scene.random.between(1, 9), scene.random.between(1, 9));
        format!("{} and {} is {}.", capitalised(NUMBERS[one]), NUMBERS[other], NUMBERS[one + other])
    }));
    let names = scene.names(2);
    let (has, gets) = (scene.random.between(1, 9), scene.random.between(1, 9));
    format!(
        "{opening} {facts}\n{} has {}. {} gives {} {} more. Now {} has {}.",
        names[0],
        coins(has),
        names[1],
        names[0],
        NUMBERS[gets],
        names[0],
        coins(has + gets)
    )
}

/// Paying, and what is left.
pub(super) fn shopping(scene: &mut Scene) -> String {
    let name = scene.name();
    let tales: Vec<String> = (0..2)
        .map(|_| {
            let paid = scene.random.between(2, 10);
            let price = scene.random.between(1, paid - 1);
            let thing = scene.things(1)[0];
            let (had, cost, left) = (coins(paid), coins(price), coins(paid - price));
            match scene.random.below(2) {
                0 => format!(
                    "{name} has {had} and buys {} for {cost}. Now {name} has {left} left.",
                    with_article(thing)
                ),
                _ => format!("The {thing} costs {cost}. {name} pays with {had}. {} back.", comes(&left)),
            }
        })
        .collect();
    let large = scene.random.between(2, 10);
    let small = scene.random.between(1, large - 1);
    let fact =
        format!("{} less {} is {}.", capitalised(NUMBERS[large]), NUMBERS[small], NUMBERS[large - small]);
    format!("{} {fact}", tales.join(" "))
}

/// `One coin comes`, `Two coins come`.
fn comes(amount: &str) -> String {
    let verb = if amount.ends_with('s') { "come" } else { "comes" };
    format!("{} {verb}", capitalised(amount))
}

/// Number words counted, compared and put in order.
pub(super) fn number_order(scene: &mut Scene) -> String {
    let name = scene.name();
    let start = scene.random.between(1, 12);
    let run: Vec<usize> = (start..start + 7).collect();
    let pair = two_numbers(scene);
    let (large, small) = (pair[0].max(pair[1]), pair[0].min(pair[1]));
    let rows: Vec<String> = (0..2)
        .map(|_| {
            let numbers = three_numbers(scene);
            let mut sorted = numbers.clone();
            sorted.sort_unstable();
            format!("{} becomes {}", spelled(&numbers), spelled(&sorted))
        })
        .collect();
    format!(
        "{name} counts: {}. {} is larger than {}. {} is smaller than {}.\nThen {name} orders three numbers.\n{}",
        spelled(&run),
        capitalised(NUMBERS[large]),
        NUMBERS[small],
        capitalised(NUMBERS[small]),
        NUMBERS[large],
        rows.join("\n")
    )
}

/// Words put in the order of the alphabet.
pub(super) fn alphabet(scene: &mut Scene) -> String {
    let opening = class(scene, "the alphabet");
    let rows: Vec<String> = (0..3)
        .map(|_| {
            let words = words_to_sort(scene);
            let mut sorted = words.clone();
            sorted.sort_unstable();
            format!("{} becomes {}", words.join(", "), sorted.join(", "))
        })
        .collect();
    format!("{opening}\n{}", rows.join("\n"))
}

/// Lists with their number of things, their first and their last.
pub(super) fn counting(scene: &mut Scene) -> String {
    let name = scene.name();
    let total = scene.random.between(2, 5);
    let things = scene.combination("list", &THINGS, total, |_| true);
    let listed: Vec<String> = things.iter().map(|thing| with_article(thing)).collect();
    let rest = format!("The first is the {} and the last is the {}.", things[0], things[total - 1]);
    match scene.random.below(2) {
        0 => format!("{name} has {}. That makes {} things. {rest}", joined(&listed), NUMBERS[total]),
        _ => format!("{name} has {} things: {}. {rest}", NUMBERS[total], joined(&listed)),
    }
}

/// Days and months in their order.
pub(super) fn calendar(scene: &mut Scene) -> String {
    let town = scene.town();
    let (day, month) = (scene.random.below(DAYS.len()), scene.random.below(MONTHS.len()));
    let day_at = |offset: usize| DAYS[(day + offset) % DAYS.len()];
    let month_at = |offset: usize| MONTHS[(month + offset) % MONTHS.len()];
    format!(
        "In {town} it is {}. Tomorrow is {}. After {} comes {}. The month is {}. After {} comes {}, and after {} comes {}.",
        day_at(0),
        day_at(1),
        day_at(1),
        day_at(2),
        month_at(0),
        month_at(0),
        month_at(1),
        month_at(1),
        month_at(2),
    )
}

/// What is done every day and was done yesterday, by me and by others.
pub(super) fn past(scene: &mut Scene) -> String {
    let (name, town) = (scene.name(), scene.town());
    sentences((0..2).map(|_| {
        let (base, third, past, places) = scene.pick(&ACTIONS);
        let place = scene.pick(&places);
        match scene.random.below(2) {
            0 => format!("{name} {third} {place}. Yesterday {name} {past} {place}."),
            _ => format!("\"I {base} {place} in {town},\" says {name}. So {name} {third} {place} in {town}."),
        }
    }))
}

/// A word repeated, and words between brackets.
pub(super) fn echo(scene: &mut Scene) -> String {
    let (name, word, times) = (scene.name(), scene.things(1)[0], scene.random.between(2, 4));
    let things = scene.things(3);
    format!(
        "{name} calls the word {word} {} times: {}.\nThe {}, the [{}] and the {} are near the door. Between the brackets \
         stands {}.",
        NUMBERS[times],
        vec![word; times].join(" "),
        things[0],
        things[1],
        things[2],
        things[1],
    )
}

/// Where jobs are done and what sounds animals make.
pub(super) fn work_and_sounds(scene: &mut Scene) -> String {
    let (name, sight) = (scene.name(), scene.pick(&SIGHTS));
    let jobs = scene.random.pick_distinct(&JOBS, 3);
    let pets = scene.random.pick_distinct(&PETS, 2);
    let works = sentences(
        jobs.iter().map(|(job, place)| format!("{} works at the {place}.", capitalised(&with_article(job)))),
    );
    let sounds = sentences(pets.iter().map(|(pet, sound)| format!("The {pet} of {name} can {sound}.")));
    format!(
        "{works} {name} is {}. So {name} works at the {}. {sounds} They can be heard at the {sight}.",
        with_article(jobs[0].0),
        jobs[0].1
    )
}

/// Reviews and notes with the label that the paper puts on them.
pub(super) fn opinions(scene: &mut Scene) -> String {
    let town = scene.town();
    let (review, verdict) = review(scene);
    let (note, topic) = note(scene);
    format!(
        "The paper of {town} printed two letters.\n{review}\nThis review is {verdict}.\n{note}\nThis note is about {topic}."
    )
}

/// Calls that are urgent or can wait.
pub(super) fn post(scene: &mut Scene) -> String {
    let name = scene.name();
    let calls: Vec<String> = (0..2)
        .map(|_| {
            let (call, label) = call(scene);
            let verdict = if label == "urgent" { "This call is urgent." } else { "This call can wait." };
            format!("{call}\n{verdict}")
        })
        .collect();
    format!("{name} hears the calls.\n{}", calls.join("\n"))
}
