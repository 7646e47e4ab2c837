//! Ways to end an answer soon.

use std::collections::VecDeque;

use llguidance::Matcher;

use super::Vocabulary;
use super::json::Json;

/// Tokens that end an answer.
pub(super) type Plan = VecDeque<u32>;

/// Most tokens of a plan.
pub(super) const LONGEST: usize = 2000;

/// What is tried inside a string, in this order: its end, then what patterns ask for between words.
const IN_STRING: &[u8] = b"\"@.-:/_ +,0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ#";
/// What is tried outside of strings: ends first, then the next thing, then values, short ones first.
const OUTSIDE: &[u8] = b"}],:0123456789\"-.nft[{<";

/// Whether `plan` ends the answer from where `matcher` is.
pub(super) fn holds(vocabulary: &Vocabulary, matcher: &mut Matcher, plan: &Plan) -> bool {
    let end = vocabulary.ends[0];
    let mut tokens: Vec<u32> = plan.iter().copied().collect();
    if tokens.last() != Some(&end) {
        tokens.push(end);
    }
    matcher.validate_tokens(&tokens).is_ok_and(|count| count == tokens.len())
}

/// A plan of at most `limit` tokens from where `matcher` is: at each step an end if there is one, else what is forced,
/// else the best of the single bytes that may come. Bytes that this string or number used seldom go first, so that
/// the repetition in a pattern is left again.
pub(super) fn shortest(
    vocabulary: &Vocabulary,
    matcher: &Matcher,
    mut json: Json,
    limit: usize,
) -> Option<Plan> {
    let trie = vocabulary.env.tok_trie();
    let limit = limit.min(LONGEST);
    let mut matcher = matcher.clone();
    let mut plan = Plan::new();
    let mut used = [0u16; 256];
    while plan.len() <= limit {
        if matcher.is_stopped() {
            return matcher.stop_reason().is_ok().then_some(plan);
        }
        if matcher.is_accepting().ok()? {
            plan.push_back(vocabulary.ends[0]);
            return (plan.len() <= limit).then_some(plan);
        }
        let forced = matcher.compute_ff_bytes();
        let tokens = if forced.is_empty() {
            vec![next(vocabulary, &mut matcher, json, &used)?]
        } else {
            trie.greedy_tokenize(&forced)
        };
        matcher.consume_tokens(&tokens).ok()?;
        for token in tokens {
            let bytes = vocabulary.bytes(token);
            let before = json;
            json.push_all(bytes);
            let structure = !json.in_string && bytes.iter().any(|byte| b",:[]{}".contains(byte));
            if structure || before.in_string != json.in_string {
                used = [0; 256];
            } else if let [byte] = bytes {
                used[usize::from(*byte)] = used[usize::from(*byte)].saturating_add(1);
            }
            plan.push_back(token);
        }
    }
    None
}

/// The token that is likeliest to lead to an end.
fn next(vocabulary: &Vocabulary, matcher: &mut Matcher, json: Json, used: &[u16; 256]) -> Option<u32> {
    let trie = vocabulary.env.tok_trie();
    let allowed = matcher.compute_mask().ok()?;
    let wishes = if json.in_string { IN_STRING } else { OUTSIDE };
    let wished = wishes.iter().filter_map(|byte| {
        let token = trie.token_id_at_bytes(&[*byte])?;
        allowed.is_allowed(token).then_some((used[usize::from(*byte)], token))
    });
    // `min_by_key` takes the first of equals.
    let best = wished.min_by_key(|(used, _)| *used).map(|(_, token)| token);
    best.or_else(|| {
        let others = allowed.iter().filter(|id| !vocabulary.bytes(*id).is_empty());
        others.min_by_key(|id| {
            let bytes = vocabulary.bytes(*id);
            (used[usize::from(bytes[0])], bytes.len())
        })
    })
}
