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

/// Why there is no plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoPlan {
    /// None was found within the limit.
    TooLong,
    /// It has what [`Json::push`] refuses.
    Unsound,
    /// The grammar reached a limit of work, or leads nowhere.
    Failed,
}

/// Where an answer is: what may come next, and what was written.
#[derive(Clone, Copy)]
pub(super) struct Place {
    /// The place in the JSON text.
    pub json: Json,
    /// Whether plans must keep to what [`Json::push`] does not refuse.
    pub strict: bool,
}

/// Whether `plan` ends the answer from where `matcher` is.
pub(super) fn holds(vocabulary: &Vocabulary, matcher: &mut Matcher, place: Place, plan: &Plan) -> bool {
    let mut json = place.json;
    let sound = plan.iter().all(|token| json.push_all(vocabulary.bytes(*token)));
    let end = vocabulary.ends[0];
    let mut tokens: Vec<u32> = plan.iter().copied().collect();
    if tokens.last() != Some(&end) {
        tokens.push(end);
    }
    (sound || !place.strict) && matcher.validate_tokens(&tokens).is_ok_and(|count| count == tokens.len())
}

/// A plan of at most `limit` tokens from where `matcher` is: at each step an end if there is one, else what is forced,
/// else the best of the single bytes that may come. Bytes that this string or number used seldom go first, so that
/// the repetition in a pattern is left again.
pub(super) fn shortest(
    vocabulary: &Vocabulary,
    matcher: &Matcher,
    place: Place,
    limit: usize,
) -> Result<Plan, NoPlan> {
    let Place { mut json, strict } = place;
    let trie = vocabulary.env.tok_trie();
    let limit = limit.min(LONGEST);
    let mut matcher = matcher.clone();
    let mut plan = Plan::new();
    let mut used = [0u16; 256];
    while plan.len() <= limit {
        if matcher.is_stopped() {
            return if matcher.stop_reason().is_ok() { Ok(plan) } else { Err(NoPlan::Failed) };
        }
        if matcher.is_accepting().map_err(|_| NoPlan::Failed)? {
            plan.push_back(vocabulary.ends[0]);
            return if plan.len() <= limit { Ok(plan) } else { Err(NoPlan::TooLong) };
        }
        let forced = matcher.compute_ff_bytes();
        let tokens = if forced.is_empty() {
            vec![next(vocabulary, &mut matcher, json, &used, plan.len()).ok_or(NoPlan::Failed)?]
        } else {
            trie.greedy_tokenize(&forced)
        };
        matcher.consume_tokens(&tokens).map_err(|_| NoPlan::Failed)?;
        for token in tokens {
            let bytes = vocabulary.bytes(token);
            let before = json;
            if !json.push_all(bytes) && strict {
                return Err(NoPlan::Unsound);
            }
            let structure = !json.in_string && bytes.iter().any(|byte| b",:[]{}".contains(byte));
            if structure || before.in_string != json.in_string {
                used = [0; 256];
            } else if let [byte] = bytes {
                used[usize::from(*byte)] = used[usize::from(*byte)].saturating_add(1);
            }
            plan.push_back(token);
        }
    }
    Err(NoPlan::TooLong)
}

/// The token that is likeliest to lead to an end. Once all bytes were tried, they come in another order at each
/// `step`: a pattern that may stand anywhere in a string asks for one byte after another, in whatever order that is.
fn next(
    vocabulary: &Vocabulary,
    matcher: &mut Matcher,
    json: Json,
    used: &[u16; 256],
    step: usize,
) -> Option<u32> {
    let trie = vocabulary.env.tok_trie();
    let allowed = matcher.compute_mask().ok()?;
    let wishes = if json.in_string { IN_STRING } else { OUTSIDE };
    let wished = wishes.iter().enumerate().filter_map(|(order, byte)| {
        let token = trie.token_id_at_bytes(&[*byte])?;
        let used = used[usize::from(*byte)];
        let order = if used == 0 { order as u64 } else { shuffled(step as u64, u64::from(*byte)) };
        allowed.is_allowed(token).then_some((used, order, token))
    });
    let best = wished.min().map(|(_, _, token)| token);
    best.or_else(|| {
        let others = allowed.iter().filter(|id| !vocabulary.bytes(*id).is_empty());
        others.min_by_key(|id| {
            let bytes = vocabulary.bytes(*id);
            (used[usize::from(bytes[0])], bytes.len())
        })
    })
}

/// A number that looks random: the mixing of SplitMix64 (Steele, Lea and Flood 2014).
fn shuffled(step: u64, byte: u64) -> u64 {
    let mut mixed = (step << 8 | byte).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed ^ (mixed >> 27)
}
