//! Names of people and towns, built from syllables so that held-out names look like the others.

use super::random::Random;
use super::words;

/// First letters, of people and towns alike.
pub(super) const ONSETS: [&str; 16] =
    ["B", "D", "F", "G", "H", "J", "K", "L", "M", "N", "P", "R", "S", "T", "V", "Z"];
const VOWELS: [&str; 5] = ["a", "e", "i", "o", "u"];
const MIDDLES: [&str; 14] = ["b", "d", "f", "g", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z"];
const PERSON_ENDINGS: [&str; 8] = ["a", "i", "essa", "o", "en", "us", "el", "ek"];
const TOWN_ENDINGS: [&str; 8] = ["ton", "ford", "dale", "wick", "field", "ham", "port", "stead"];
const TOWN_CODAS: [&str; 8] = ["l", "m", "n", "r", "s", "d", "k", "b"];

/// What the syllables could also spell and no table of words holds: ordinary English words, known names,
/// and words that nobody wants to read.
const NOT_NAMES: [&str; 34] = [
    "also", "begun", "bonus", "demo", "given", "focus", "taken", "token", "taxi", "tuna", "sofa", "soda",
    "data", "visa", "virus", "venus", "nazi", "jesus", "homo", "semen", "pedo", "gaza", "titus", "lemon",
    "logo", "begi", "model", "novel", "level", "panel", "label", "bagel", "babel", "rebel",
];

/// Beginnings that nobody wants to read in a name.
const NOT_BEGINNINGS: [&str; 13] =
    ["Nig", "Fag", "Rap", "Pis", "Tit", "Pub", "Fuk", "Kok", "Dik", "Kum", "Jap", "Nud", "Neg"];

/// The names of one part of the world.
#[derive(Clone, Debug, Default)]
pub(super) struct Names {
    pub people: Vec<String>,
    pub towns: Vec<String>,
}

/// Many training names, people first: rare enough that a tokenizer keeps them in pieces and a model learns
/// to copy pieces rather than to know names. Fewer are held out.
const TRAINING: (usize, usize) = (7_500, 4_000);
const HELD_OUT: (usize, usize) = (400, 160);

/// Draws the names: training first, then held-out names of which none begins a training name, so that
/// no search for a held-out name in training text can find anything.
pub(super) fn draw(seed: u64) -> (Names, Names) {
    let mut random = Random::new(seed, "names");
    let (mut people, mut towns) = (all_people(), all_towns());
    random.shuffle(&mut people);
    random.shuffle(&mut towns);
    let spare_people = people.split_off(TRAINING.0);
    let spare_towns = towns.split_off(TRAINING.1);
    let training = Names { people, towns };
    let unseen = |candidates: Vec<String>, count: usize| {
        candidates
            .into_iter()
            .filter(|name| !training.people.iter().chain(&training.towns).any(|seen| seen.starts_with(name)))
            .take(count)
            .collect()
    };
    let held_out = Names { people: unseen(spare_people, HELD_OUT.0), towns: unseen(spare_towns, HELD_OUT.1) };
    (training, held_out)
}

/// Names in -a and -i are hers, all others his.
pub(super) fn is_hers(name: &str) -> bool {
    name.ends_with(['a', 'i'])
}

fn all_people() -> Vec<String> {
    let mut names = Vec::new();
    for onset in ONSETS {
        for vowel in VOWELS {
            for middle in MIDDLES {
                for ending in PERSON_ENDINGS {
                    names.push(format!("{onset}{vowel}{middle}{ending}"));
                }
            }
        }
    }
    names.retain(|name| is_fit(name) && !is_word(name));
    names
}

fn all_towns() -> Vec<String> {
    let mut names = Vec::new();
    for onset in ONSETS {
        for vowel in VOWELS {
            for coda in TOWN_CODAS {
                for ending in TOWN_ENDINGS {
                    names.push(format!("{onset}{vowel}{coda}{ending}"));
                }
            }
        }
    }
    names.retain(|name| is_fit(name));
    names
}

fn is_fit(name: &str) -> bool {
    !NOT_BEGINNINGS.iter().any(|start| name.starts_with(start))
}

/// True if the name, written small, is a word of the world.
fn is_word(name: &str) -> bool {
    let word = name.to_lowercase();
    let word = word.as_str();
    NOT_NAMES.contains(&word)
        || words::NUMBERS.contains(&word)
        || words::COLOURS.contains(&word)
        || words::THINGS.contains(&word)
        || words::LIKES.contains(&word)
        || words::SIGHTS.contains(&word)
        || words::VENUES.contains(&word)
        || words::MONTHS.iter().chain(&words::DAYS).any(|known| *known == name)
        || words::JOBS.iter().any(|(job, place)| *job == word || *place == word)
        || words::OPPOSITES.iter().any(|(one, other)| *one == word || *other == word)
        || words::KINDS.iter().any(|(kind, members)| *kind == word || members.contains(&word))
        || words::ACTIONS.iter().any(|(base, third, past, _)| [*base, *third, *past].contains(&word))
        || words::IRREGULAR_PLURALS.iter().any(|(one, many)| *one == word || *many == word)
}
