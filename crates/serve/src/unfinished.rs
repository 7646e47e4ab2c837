//! What answers took that nobody waited for to the end.

use crate::ask::AskUsage;

/// Tokens of answers that have not ended, and may never do so: whoever goes away early has used them all the same.
#[derive(Debug)]
pub struct Unfinished {
    /// Tokens of each prompt.
    prompts: Vec<usize>,
    /// Answers to each prompt.
    count: usize,
    /// Tokens of each answer; none once it has ended.
    written: Vec<Option<usize>>,
}

impl Unfinished {
    /// Nothing is written yet of `count` answers to each prompt.
    pub fn new(prompts: Vec<usize>, count: usize) -> Unfinished {
        let written = vec![Some(0); prompts.len() * count];
        Unfinished { prompts, count, written }
    }

    /// Counts a token of an answer.
    pub fn token(&mut self, index: usize) {
        if let Some(Some(tokens)) = self.written.get_mut(index) {
            *tokens += 1;
        }
    }

    /// An answer has ended. Returns what it took as far as was seen.
    pub fn end(&mut self, index: usize) -> AskUsage {
        let completion = self.written.get_mut(index).and_then(Option::take).unwrap_or(0);
        let prompt = self.prompts.get(index / self.count.max(1)).copied().unwrap_or(0);
        AskUsage { prompt, cached: 0, completion }
    }

    /// What they took so far. A prompt counts with the first of its answers.
    pub fn usage(&self) -> AskUsage {
        let mut usage = AskUsage::default();
        for (index, tokens) in
            self.written.iter().enumerate().filter_map(|(index, open)| Some((index, (*open)?)))
        {
            usage.completion += tokens;
            if index.is_multiple_of(self.count) {
                usage.prompt += self.prompts[index / self.count];
            }
        }
        usage
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_counts_with_the_first_of_its_answers_and_an_ended_answer_no_more() {
        let mut unfinished = Unfinished::new(vec![10, 20], 2);
        let used = |unfinished: &Unfinished| (unfinished.usage().prompt, unfinished.usage().completion);
        assert_eq!(used(&unfinished), (30, 0));
        (0..4).for_each(|index| unfinished.token(index));
        unfinished.token(3);
        assert_eq!(used(&unfinished), (30, 5));
        assert_eq!(unfinished.end(3), AskUsage { prompt: 20, cached: 0, completion: 2 });
        assert_eq!(used(&unfinished), (30, 3));
        unfinished.end(0);
        assert_eq!(used(&unfinished), (20, 2));
        // Whoever counts on an answer that there is not counts nothing.
        unfinished.token(9);
        unfinished.end(9);
        assert_eq!(used(&unfinished), (20, 2));
    }
}
