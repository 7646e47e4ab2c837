//! What is kept of finished sequences: the next turn of a conversation, or another question under the same
//! instructions, begins with tokens whose keys and values are known already. States of fixed size cannot be cut: they
//! help where a prompt begins with all that a sequence has seen, as the next turn of a conversation does.

use strata_model::State;

/// Fewer common tokens than this are computed again: copying has its price too.
const WORTH: usize = 8;
/// Sequences that are kept at most, so that looking through them stays cheap.
const ENTRIES: usize = 512;

struct Entry {
    client: u64,
    /// As many as the state has seen.
    tokens: Vec<u32>,
    state: State,
    used: u64,
}

/// Finished sequences, the least recently used of which go first.
#[derive(Default)]
pub(super) struct PrefixCache {
    entries: Vec<Entry>,
    clock: u64,
    bytes: usize,
}

impl PrefixCache {
    /// Bytes of the states kept.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The longest known beginning of `prompt`, at least one token shorter than it: a copy of its state.
    pub fn find(&mut self, client: u64, prompt: &[u32]) -> Option<State> {
        let best = self
            .entries
            .iter_mut()
            .filter(|entry| entry.client == client)
            .map(|entry| (common(&entry.tokens, prompt), entry))
            .filter(|(length, _)| is_worth(*length))
            .map(|(length, entry)| (entry.state.reach(length), entry))
            .filter(|(length, _)| is_worth(*length))
            .max_by_key(|(length, _)| *length);
        let (length, entry) = best?;
        self.clock += 1;
        entry.used = self.clock;
        entry.state.prefix(length)
    }

    /// Keeps the state of a finished sequence; `tokens` are those it has seen.
    pub fn keep(&mut self, client: u64, tokens: Vec<u32>, state: State) {
        if tokens.len() < WORTH {
            return;
        }
        // A shorter one that the new one begins with adds nothing, nor does the new one to a longer, where the longer can
        // be cut to it.
        self.clock += 1;
        let clock = self.clock;
        if let Some(longer) = self.entries.iter_mut().find(|e| {
            let covers = e.client == client && e.tokens.starts_with(&tokens);
            covers && e.state.reach(tokens.len()) == tokens.len()
        }) {
            longer.used = clock;
            return;
        }
        self.entries.retain(|entry| {
            let known = entry.tokens.len();
            let covered =
                entry.client == client && tokens.starts_with(&entry.tokens) && state.reach(known) == known;
            if covered {
                self.bytes -= entry.state.bytes();
            }
            !covered
        });
        self.bytes += state.bytes();
        self.entries.push(Entry { client, tokens, state, used: clock });
        if self.entries.len() > ENTRIES {
            self.forget_one();
        }
    }

    /// Forgets the least recently used until at most `bytes` are kept.
    pub fn shrink(&mut self, bytes: usize) {
        while self.bytes > bytes && !self.entries.is_empty() {
            self.forget_one();
        }
    }

    fn forget_one(&mut self) {
        let oldest = self.entries.iter().enumerate().min_by_key(|(_, entry)| entry.used);
        if let Some((index, _)) = oldest {
            self.bytes -= self.entries.swap_remove(index).state.bytes();
        }
    }
}

/// Number of tokens of `prompt`, all but the last one at most, that `known` begins with.
pub(super) fn common(known: &[u32], prompt: &[u32]) -> usize {
    let all_but_last = &prompt[..prompt.len() - 1];
    known.iter().zip(all_but_last).take_while(|(a, b)| a == b).count()
}

/// Whether so many tokens are worth a copy.
pub(super) fn is_worth(length: usize) -> bool {
    length >= WORTH
}
