//! Works answers out from prompts alone, without the generator's help.

use super::tokens;
use crate::world::words::{DAYS, MONTHS, NUMBERS};

pub(super) fn number(word: &str) -> usize {
    let found = NUMBERS.iter().position(|known| *known == word);
    assert!(found.is_some(), "{word} is no number");
    found.unwrap_or_default()
}

/// All number words of a text, in order.
pub(super) fn numbers(text: &str) -> Vec<usize> {
    tokens(text).filter_map(|token| NUMBERS.iter().position(|known| *known == token)).collect()
}

/// The items of the only list of three or more in a prompt.
fn listed(prompt: &str) -> Vec<&str> {
    let line = prompt.lines().find(|line| line.matches(", ").count() >= 2);
    let list = line.map_or("", |line| line.rsplit([':', '?']).next().unwrap_or(line));
    list.split(',').map(str::trim).collect()
}

/// Works the answer out from the prompt alone, where a few lines of program can.
pub(super) fn solve(family: &str, prompt: &str) -> Option<String> {
    let after = |mark: &str| prompt.split_once(mark).map(|(_, rest)| rest);
    Some(match family {
        "first-item" => listed(prompt).first()?.to_string(),
        "last-item" => listed(prompt).last()?.to_string(),
        "marked-word" => after("[")?.split_once(']')?.0.to_string(),
        "quote" => after("\"")?.split_once('"')?.0.to_string(),
        "repeat" => {
            let word = after("word ")?.split(' ').next()?;
            vec![word; numbers(prompt)[0]].join(" ")
        }
        "sort-words" => {
            let mut words = listed(prompt);
            words.sort_unstable();
            words.join(", ")
        }
        "sort-numbers" => {
            let mut found = numbers(prompt);
            found.sort_unstable();
            found.iter().map(|number| NUMBERS[*number]).collect::<Vec<_>>().join(", ")
        }
        "larger-number" => NUMBERS[*numbers(prompt).iter().max()?].to_string(),
        "sum" => NUMBERS[numbers(prompt).iter().sum::<usize>()].to_string(),
        "change" => {
            let found = numbers(prompt);
            NUMBERS[found[0].abs_diff(found[1])].to_string()
        }
        "count" => {
            let line = prompt.lines().find(|line| line.contains(" has a"))?;
            NUMBERS[line.matches(" a ").count() + line.matches(" an ").count()].to_string()
        }
        "next-day" | "next-month" => {
            let all: &[&str] = if family == "next-day" { &DAYS } else { &MONTHS };
            let now = all.iter().position(|name| tokens(prompt).any(|token| token == *name))?;
            all[(now + 1) % all.len()].to_string()
        }
        "initials" => {
            let mut names = prompt.trim_end_matches(['.', '?']).rsplit(' ');
            let (second, first) = (names.next()?, names.next()?);
            format!("{}. {}.", &first[..1], &second[..1])
        }
        "extract-date" => {
            let month = MONTHS.iter().find(|month| prompt.contains(&format!(" {month}.")))?;
            let before = prompt.split_once(&format!(" {month}."))?.0;
            format!("{} {month}", before.rsplit(' ').next()?)
        }
        "compare-prices" => {
            // Two lines or sentences, each with a thing and its price in this order.
            let amounts = numbers(prompt);
            let told = prompt.split_once('\n')?.1.rsplit_once('\n')?.0;
            let things: Vec<&str> = told
                .split(['.', '\n', ':'])
                .flat_map(|part| part.split(" costs ").take(1))
                .map(str::trim)
                .filter(|part| !part.is_empty() && !part.contains("coin"))
                .map(|part| part.rsplit(' ').next().unwrap_or(part))
                .collect();
            let dear = prompt.ends_with("costs more?") || prompt.ends_with("is more expensive?");
            format!("the {}", things[usize::from((amounts[0] > amounts[1]) != dear)])
        }
        "where" => {
            let name =
                prompt.lines().last()?.trim_end_matches(" live?").trim_end_matches('?').rsplit(' ').next()?;
            let sentence = prompt.split('.').find(|sentence| sentence.trim().starts_with(name))?;
            let town = sentence.split_once(" in ").or_else(|| sentence.split_once(" from "))?.1;
            format!("in {}", town.split(' ').next()?)
        }
        "price" => {
            let thing = prompt.trim_end_matches([' ', '?']).trim_end_matches(" cost").rsplit(' ').next()?;
            let told = prompt.rsplit_once('\n')?.0;
            let rest = told.split_once(&format!("{thing} costs "));
            let rest = rest.or_else(|| told.split_once(&format!("{thing}: ")))?.1;
            rest.split(['.', '\n']).next()?.to_string()
        }
        _ => return None,
    })
}
