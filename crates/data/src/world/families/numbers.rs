//! Families about number words, days and months.

use super::Example;
use crate::world::passages::prices;
use crate::world::scene::Scene;
use crate::world::words::{DAYS, MONTHS, NUMBERS, coins, with_article};

/// The day after the one named.
pub(super) fn next_day(scene: &mut Scene) -> Example {
    let (today, town) = (scene.random.below(DAYS.len()), scene.town());
    let tomorrow = DAYS[(today + 1) % DAYS.len()];
    let today = DAYS[today];
    let prompt = match scene.random.below(2) {
        0 => format!("Today is {today} in {town}. What day is tomorrow?"),
        _ => format!("It is {today} in {town}. Which day comes next?"),
    };
    (prompt, tomorrow.to_string())
}

/// The month after the one named.
pub(super) fn next_month(scene: &mut Scene) -> Example {
    let (now, town) = (scene.random.below(MONTHS.len()), scene.town());
    let next = MONTHS[(now + 1) % MONTHS.len()];
    let now = MONTHS[now];
    let prompt = match scene.random.below(2) {
        0 => format!("It is {now} in {town}. Which month comes next?"),
        _ => format!("This month is {now} in {town}. What month is the next one?"),
    };
    (prompt, next.to_string())
}

/// Two different numbers that belong to this part.
pub(in crate::world) fn two_numbers(scene: &mut Scene) -> Vec<usize> {
    let range: Vec<usize> = (1..=20).collect();
    scene.combination("larger", &range, 2, |_| true)
}

/// The larger of two numbers.
pub(super) fn larger_number(scene: &mut Scene) -> Example {
    let pair = two_numbers(scene);
    let (one, other) = (NUMBERS[pair[0]], NUMBERS[pair[1]]);
    let prompt = match scene.random.below(2) {
        0 => format!("Which number is larger, {one} or {other}?"),
        _ => format!("Name the larger number: {one}, {other}"),
    };
    (prompt, NUMBERS[pair[0].max(pair[1])].to_string())
}

/// Three different numbers up to twelve that belong to this part.
pub(in crate::world) fn three_numbers(scene: &mut Scene) -> Vec<usize> {
    let range: Vec<usize> = (1..=12).collect();
    scene.combination("numbers", &range, 3, |_| true)
}

/// The words of these numbers, with commas.
pub(in crate::world) fn spelled(numbers: &[usize]) -> String {
    numbers.iter().map(|number| NUMBERS[*number]).collect::<Vec<_>>().join(", ")
}

/// Three numbers from small to large.
pub(super) fn sort_numbers(scene: &mut Scene) -> Example {
    let numbers = three_numbers(scene);
    let listed = spelled(&numbers);
    let mut sorted = numbers;
    sorted.sort_unstable();
    let prompt = match scene.random.below(2) {
        0 => format!("Sort these numbers from small to large: {listed}"),
        _ => format!("Write these numbers in order: {listed}"),
    };
    (prompt, spelled(&sorted))
}

/// The cheaper or the dearer of two things.
pub(super) fn compare_prices(scene: &mut Scene) -> Example {
    let shop = prices(scene, 2);
    let dearer = scene.random.coin();
    let (one, other) = (shop.items[0], shop.items[1]);
    let thing = if (one.1 > other.1) == dearer { one.0 } else { other.0 };
    let question = match (scene.random.below(2), dearer) {
        (0, true) => "Which thing costs more?",
        (0, false) => "Which thing costs less?",
        (_, true) => "Which thing is more expensive?",
        (_, false) => "Which thing is cheaper?",
    };
    (format!("{}\n{question}", shop.passage), format!("the {thing}"))
}

/// How many after a gift? Sums up to eighteen.
pub(super) fn sum(scene: &mut Scene) -> Example {
    let (has, gets) = (scene.random.between(1, 9), scene.random.between(1, 9));
    let names = scene.names(2);
    let (one, other) = (names[0], names[1]);
    let (had, got) = (coins(has), NUMBERS[gets]);
    let prompt = match scene.random.below(2) {
        0 => format!("{one} has {had}. {other} gives {one} {got} more. How many coins does {one} have now?"),
        _ => format!("{one} finds {had} and then {got} more. {other} counts them. How many coins are there?"),
    };
    (prompt, NUMBERS[has + gets].to_string())
}

/// What is left after paying?
pub(super) fn change(scene: &mut Scene) -> Example {
    let paid = scene.random.between(2, 10);
    let price = scene.random.between(1, paid - 1);
    let (name, thing) = (scene.name(), scene.things(1)[0]);
    let bought = with_article(thing);
    let (paid_coins, price_coins) = (coins(paid), coins(price));
    let prompt = match scene.random.below(2) {
        0 => format!("{name} has {paid_coins} and buys {bought} for {price_coins}. How many coins are left?"),
        _ => format!(
            "The {thing} costs {price_coins}. {name} pays with {paid_coins}. How many coins come back?"
        ),
    };
    (prompt, NUMBERS[paid - price].to_string())
}
