use super::queue::Queue;
use super::*;
use crate::{Grammars, Sampling, Shape, generate};
use strata_model::{Config, Decoder};
use strata_tensor::Isa;

const CONTEXT: usize = 160;

fn tokenizer() -> Tokenizer {
    Tokenizer::train([Ok("the water and the land, the bar and the water")], 280).unwrap()
}

fn decoder(vocab_size: usize) -> Decoder {
    mixed(vocab_size, "A")
}

fn mixed(vocab_size: usize, pattern: &str) -> Decoder {
    let ssm = strata_model::SsmShape { head_dim: 8, state: 8, ..Default::default() };
    let config = Config {
        vocab_size,
        width: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head_dim: 8,
        ffn: 24,
        max_positions: CONTEXT,
        norm_epsilon: 1e-5,
        rope_theta: 10000.0,
        rope_scaling: None,
        tied: false,
        bos: None,
        eos: vec![],
        mixing: strata_model::Mixing { pattern: pattern.into(), ssm, ..Default::default() },
    };
    Decoder::new(&config, 5).unwrap()
}

fn cpu() -> Cpu {
    Cpu::new(Isa::best(), 2).unwrap()
}

fn model() -> Inference {
    Inference::new(decoder(tokenizer().vocab_size()), &cpu())
}

fn engine(settings: Settings) -> Engine {
    Engine::start(model(), tokenizer(), cpu(), settings).unwrap()
}

fn request(prompt: &[u32], max_tokens: usize) -> Request {
    Request {
        prompt: prompt.to_vec(),
        limits: Limits { max_tokens, stop: vec![] },
        stop_strings: vec![],
        sampling: Sampling::default(),
        bias: [].into(),
        answer: false,
        constraint: None,
        log_probabilities: None,
        prompt_log_probabilities: false,
        client: 0,
        deadline: None,
    }
}

/// The tokens and the end of a request.
fn collect(mut events: Events) -> (Vec<u32>, Finished) {
    let mut tokens = Vec::new();
    loop {
        match events.blocking_next() {
            Some((0, Event::Token(token))) => tokens.push(token.id),
            Some((0, Event::Finished(finished))) => return (tokens, finished),
            other => panic!("{other:?} after {} tokens", tokens.len()),
        }
    }
}

fn prompts() -> Vec<Vec<u32>> {
    (0..40u32).map(|i| (0..1 + i * 7 % 90).map(|k| 7 + (i * 31 + k * k * 13) % 250).collect()).collect()
}

#[test]
fn what_a_request_gets_does_not_depend_on_the_others() {
    let crowded = engine(Settings { batch: 7, prompt_tokens: 16, ..Settings::default() });
    let together: Vec<_> =
        prompts().iter().map(|prompt| crowded.submit(vec![request(prompt, 30)]).unwrap()).collect();
    let alone = engine(Settings { cache_bytes: 0, ..Settings::default() });
    for (prompt, events) in prompts().iter().zip(together) {
        let (tokens, finished) = collect(events);
        let (expected, _) = collect(alone.submit(vec![request(prompt, 30)]).unwrap());
        assert_eq!(tokens, expected);
        assert_eq!(finished.reason, Reason::Length);
        assert_eq!(finished.usage.completion_tokens, 30);
    }
}

#[test]
fn the_engine_writes_what_plain_generation_writes() {
    let limits = Limits { max_tokens: 20, stop: vec![] };
    let all = generate(&model(), &cpu(), &prompts(), &limits, Sampling::default(), |_, _| true).unwrap();
    let engine = engine(Settings::default());
    for (prompt, expected) in prompts().iter().zip(all) {
        assert_eq!(collect(engine.submit(vec![request(prompt, 20)]).unwrap()).0, expected.tokens);
    }
}

#[test]
fn the_next_turn_finds_what_the_last_one_computed_and_gets_the_same() {
    let engine = engine(Settings::default());
    let first: Vec<u32> = (10..40).collect();
    let (answer, finished) = collect(engine.submit(vec![request(&first, 12)]).unwrap());
    assert_eq!(finished.usage.cached_tokens, 0);
    let second: Vec<u32> = first.iter().chain(&answer).copied().chain(50..60).collect();
    let again = Request { client: 1, ..request(&second, 20) };
    let (elsewhere, other_client) = collect(engine.submit(vec![again]).unwrap());
    let (here, finished) = collect(engine.submit(vec![request(&second, 20)]).unwrap());
    // The last token of the answer was chosen and never read.
    assert_eq!(finished.usage.cached_tokens, first.len() + answer.len() - 1);
    assert_eq!(other_client.usage.cached_tokens, 0, "what one client asked is not shared with another");
    assert_eq!(here, elsewhere);
    assert_eq!(engine.counters().cached_tokens.load(Relaxed) as usize, first.len() + answer.len() - 1);
}

#[test]
fn a_state_that_cannot_be_cut_serves_the_next_turn_and_nothing_else() {
    for pattern in ["S", "L", "D", "SA"] {
        let model = || Inference::new(mixed(tokenizer().vocab_size(), pattern), &cpu());
        let start = |settings| Engine::start(model(), tokenizer(), cpu(), settings).unwrap();
        let (engine, alone) =
            (start(Settings::default()), start(Settings { cache_bytes: 0, ..Settings::default() }));
        let first: Vec<u32> = (10..40).collect();
        let (answer, _) = collect(engine.submit(vec![request(&first, 12)]).unwrap());
        let turn: Vec<u32> = first.iter().chain(&answer).copied().chain(50..60).collect();
        let other: Vec<u32> = first.iter().copied().chain(60..70).collect();
        for (prompt, cached) in [(&other, 0), (&turn, first.len() + answer.len() - 1), (&turn, 41)] {
            let (tokens, finished) = collect(engine.submit(vec![request(prompt, 20)]).unwrap());
            assert_eq!(finished.usage.cached_tokens, cached, "{pattern}");
            assert_eq!(tokens, collect(alone.submit(vec![request(prompt, 20)]).unwrap()).0, "{pattern}");
        }
    }
}

#[test]
fn what_a_running_sequence_has_read_is_not_read_again_in_its_lane() {
    let engine =
        Engine::start(model(), tokenizer(), Cpu::new(Isa::best(), 1).unwrap(), Settings::default()).unwrap();
    let prompt: Vec<u32> = (10..60).collect();
    let mut running = engine.submit(vec![request(&prompt, 100)]).unwrap();
    assert!(matches!(running.blocking_next(), Some((0, Event::Token(_)))));
    let other: Vec<u32> = prompt.iter().copied().chain([99, 98]).collect();
    let (tokens, finished) = collect(engine.submit(vec![request(&other, 10)]).unwrap());
    assert_eq!(finished.usage.cached_tokens, prompt.len());
    let elsewhere = Request { client: 7, ..request(&other, 10) };
    assert_eq!(collect(engine.submit(vec![elsewhere]).unwrap()).0, tokens);
}

#[test]
fn constrained_answers_are_whole_beside_free_ones() {
    let (model, tokenizer) = (model(), tokenizer());
    let grammars = Grammars::new(&tokenizer, model.config().vocab_size).unwrap();
    let ends = tokenizer.eos_ids().to_vec();
    let engine = Engine::start(model, tokenizer, cpu(), Settings::default()).unwrap();
    let constraint = grammars.constraint(&Shape::JsonObject).unwrap();
    let sampling = Sampling { temperature: 1.0, seed: 5, ..Sampling::default() };
    let formed = Request {
        constraint: Some(constraint),
        limits: Limits { max_tokens: 40, stop: ends },
        sampling,
        ..request(&[20, 21, 22], 40)
    };
    let requests: Vec<Request> =
        (0..8).map(|i| if i % 2 == 0 { formed.clone() } else { request(&[20, 21, 22], 40) }).collect();
    let mut events = engine.submit(requests).unwrap();
    let mut texts = vec![String::new(); 8];
    while let Some((index, event)) = events.blocking_next() {
        match event {
            Event::Token(token) => texts[index] += &token.text,
            Event::Finished(finished) => texts[index] += &finished.text,
            Event::Failed(problem) => panic!("{problem}"),
            Event::Prompt(_) => panic!("a prompt"),
        }
    }
    for text in texts.iter().step_by(2) {
        assert!(
            serde_json::from_str::<serde_json::Value>(text).is_ok_and(|value| value.is_object()),
            "{text:?}"
        );
    }
    assert!(texts[0] != texts[2], "they choose independently: {texts:?}");
}

#[test]
fn lanes_share_out_what_comes_and_know_what_the_others_kept() {
    let engine = engine(Settings::default());
    assert_eq!(engine.lanes.len(), 2, "one for each thread: the model is small");
    let both: Vec<_> = (0..2).map(|_| engine.submit(vec![request(&[1, 2, 3], 140)]).unwrap()).collect();
    assert!(engine.lanes.iter().all(|lane| lane.load.load(Relaxed) <= 1));
    assert_eq!(engine.counters().running.load(Relaxed) + engine.counters().waiting.load(Relaxed), 2);
    let written: Vec<_> = both.into_iter().map(|events| collect(events).0).collect();
    assert_eq!(written[0], written[1], "lanes write the same");

    // The first lane has the first conversation; while it is busy, the second goes on with it.
    let prompt: Vec<u32> = (10..50).collect();
    let (answer, _) = collect(engine.submit(vec![request(&prompt, 20)]).unwrap());
    let mut busy = engine.submit(vec![request(&[7], 150)]).unwrap();
    assert!(matches!(busy.blocking_next(), Some((0, Event::Token(_)))));
    let turn: Vec<u32> = prompt.iter().chain(&answer).copied().chain(60..70).collect();
    let (_, finished) = collect(engine.submit(vec![request(&turn, 1)]).unwrap());
    assert_eq!(finished.usage.cached_tokens, prompt.len() + answer.len() - 1);
}

#[test]
fn what_is_kept_stays_within_its_bytes() {
    let bytes = 100 << 10;
    let engine = engine(Settings { cache_bytes: bytes, batch: 2, ..Settings::default() });
    for prompt in prompts() {
        collect(engine.submit(vec![request(&prompt, 40)]).unwrap());
    }
    // One more step passes before the counter is renewed; wait for the thread to be idle.
    collect(engine.submit(vec![request(&[1], 1)]).unwrap());
    assert!(engine.counters().cache_bytes.load(Relaxed) <= bytes);
}

#[test]
fn a_full_queue_refuses_and_says_when_to_come_back() {
    let engine = engine(Settings { batch: 1, queue: 2, ..Settings::default() });
    let mut taken = Vec::new();
    let refused = loop {
        match engine.submit(vec![request(&[1, 2, 3], 100)]) {
            Ok(events) => taken.push(events),
            Err(refused) => break refused,
        }
    };
    let Refused::Full { waiting, retry_after } = refused else { panic!("{refused}") };
    assert_eq!(waiting, 2);
    assert!(retry_after >= Duration::from_secs(1));
    for events in taken {
        assert_eq!(collect(events).0.len(), 100);
    }
    assert!(engine.submit(vec![request(&[1], 1)]).is_ok(), "there is room again");
}

#[test]
fn a_dropped_stream_frees_its_place() {
    // This thread may be held up until all is written, but not every time.
    let written: Vec<u64> = (0..20)
        .map(|_| {
            let engine = engine(Settings { batch: 1, queue: 8, ..Settings::default() });
            let mut running = engine.submit(vec![request(&[1, 2], 150)]).unwrap();
            let waiting = engine.submit(vec![request(&[3, 4], 150)]).unwrap();
            let last = engine.submit(vec![request(&[5, 6], 3)]).unwrap();
            assert!(matches!(running.blocking_next(), Some((0, Event::Token(_)))));
            drop(waiting);
            drop(running);
            assert_eq!(collect(last).0.len(), 3);
            engine.counters().completion_tokens.load(Relaxed)
        })
        .collect();
    assert!(written.iter().any(|tokens| *tokens < 150), "tokens were written for nobody: {written:?}");
}

#[test]
fn who_waits_for_an_end_is_woken_when_everything_before_it_is_there() {
    let engine = engine(Settings::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut events = engine.submit(vec![request(&[1], 30)]).unwrap();
    runtime.block_on(events.an_end());
    let mut taken = Vec::new();
    assert_eq!(runtime.block_on(events.take_into(&mut taken, 100)), 31);
    assert!(matches!(taken.last(), Some((0, Event::Finished(_)))));
}

#[test]
fn clients_take_turns() {
    let (events, _receiver) = unbounded_channel();
    let mut queue = Queue::default();
    for (client, tokens) in [(7, 1), (7, 2), (7, 3), (8, 4), (9, 5), (9, 6)] {
        let request = Request { client, ..request(&[1], tokens) };
        let ended = Arc::new(Notify::new());
        let (events, since, _place) = (events.clone(), Instant::now(), Place(Arc::new(AtomicUsize::new(1))));
        queue.push(Job { request, index: 0, events, ended, since, _place });
    }
    let order: Vec<usize> =
        std::iter::from_fn(|| queue.pop(|_| true)).map(|job| job.request.limits.max_tokens).collect();
    assert_eq!(order, [1, 4, 5, 2, 6, 3]);
}

#[test]
fn time_is_bounded() {
    let engine = engine(Settings { batch: 1, ..Settings::default() });
    let late = Request { deadline: Some(Instant::now()), ..request(&[1, 2], 150) };
    let (tokens, finished) = collect(engine.submit(vec![late]).unwrap());
    assert_eq!((tokens.len(), finished.reason), (0, Reason::Timeout));

    // So is that of a running sequence. How many tokens come until then is the machine's affair.
    let cut = (1..200).any(|step| {
        let deadline = Some(Instant::now() + Duration::from_micros(200 * step));
        let request = Request { deadline, ..request(&[1, 2], 150) };
        let (tokens, finished) = collect(engine.submit(vec![request]).unwrap());
        assert!(tokens.len() == 150 || finished.reason == Reason::Timeout);
        assert_eq!(finished.usage.completion_tokens, tokens.len());
        (1..150).contains(&tokens.len())
    });
    assert!(cut, "no sequence was ever cut while it was written");
}

#[test]
fn a_model_that_computes_no_numbers_fails_and_does_not_answer() {
    let mut decoder = decoder(tokenizer().vocab_size());
    let mut tensors = decoder.tensors();
    tensors[0].data.fill(f32::NAN);
    decoder.set_tensors(tensors).unwrap();
    let damaged = || Inference::new(decoder.clone(), &cpu());
    let alone = generate(
        &damaged(),
        &cpu(),
        &[vec![1, 2]],
        &Limits { max_tokens: 5, stop: vec![] },
        Sampling::default(),
        |_, _| true,
    );
    assert!(alone.unwrap_err().to_string().contains("no numbers"));
    let engine = Engine::start(damaged(), tokenizer(), cpu(), Settings::default()).unwrap();
    let mut events = engine.submit(vec![request(&[1, 2], 5)]).unwrap();
    let Some((0, Event::Failed(problem))) = events.blocking_next() else { panic!("an answer") };
    assert!(problem.contains("no numbers"), "{problem}");
    assert_eq!(events.blocking_next(), None);
    // Nor is a text measured with it.
    let measured =
        Request { log_probabilities: Some(0), prompt_log_probabilities: true, ..request(&[1, 2], 0) };
    let mut events = engine.submit(vec![measured]).unwrap();
    assert!(matches!(events.blocking_next(), Some((0, Event::Failed(_)))));
}

#[test]
fn text_comes_as_it_is_certain_and_ends_before_a_stop_string() {
    let engine = engine(Settings::default());
    let whole: String = {
        let mut events = engine.submit(vec![request(&[20, 21], 40)]).unwrap();
        let mut text = String::new();
        while let Some((_, event)) = events.blocking_next() {
            match event {
                Event::Token(token) => text += &token.text,
                Event::Finished(finished) => text += &finished.text,
                Event::Failed(problem) => panic!("{problem}"),
                Event::Prompt(_) => panic!("a prompt"),
            }
        }
        text
    };
    let characters: Vec<char> = whole.chars().collect();
    let stop: String = characters[characters.len() / 2..][..2].iter().collect();
    let stopped = Request { stop_strings: vec![stop.clone()], ..request(&[20, 21], 40) };
    let mut events = engine.submit(vec![stopped]).unwrap();
    let mut text = String::new();
    let reason = loop {
        match events.blocking_next().unwrap().1 {
            Event::Token(token) => text += &token.text,
            Event::Finished(finished) => {
                text += &finished.text;
                break finished.reason;
            }
            Event::Failed(problem) => panic!("{problem}"),
            Event::Prompt(_) => panic!("a prompt"),
        }
    };
    assert_eq!(reason, Reason::StopString(stop.clone()));
    assert_eq!(text, whole[..whole.find(&stop).unwrap()]);
    assert_eq!(events.blocking_next(), None);
}

#[test]
fn log_probabilities_and_alternatives_come_with_each_token() {
    let engine = engine(Settings::default());
    let mut events = engine.submit(vec![Request { log_probabilities: Some(3), ..request(&[9], 4) }]).unwrap();
    let Some((0, Event::Token(token))) = events.blocking_next() else { panic!("no token") };
    assert_eq!(token.alternatives.len(), 3);
    assert_eq!(
        token.alternatives[0],
        (token.id, token.log_probability.unwrap()),
        "greedy takes the likeliest"
    );
    assert!(token.alternatives.is_sorted_by(|a, b| a.1 >= b.1) && token.alternatives[0].1 <= 0.0);
}

#[test]
fn several_continuations_of_a_prompt_choose_independently() {
    let engine = engine(Settings::default());
    let sampling = Sampling { temperature: 1.0, seed: 3, ..Sampling::default() };
    let request = Request { sampling, ..request(&[9, 10, 11], 20) };
    let run = || {
        let mut events = engine.submit(vec![request.clone(); 3]).unwrap();
        let mut tokens = vec![Vec::new(); 3];
        while let Some((index, event)) = events.blocking_next() {
            if let Event::Token(token) = event {
                tokens[index].push(token.id);
            }
        }
        tokens
    };
    let first = run();
    assert!(first[0] != first[1] && first[1] != first[2] && first[0].len() == 20, "{first:?}");
    assert_eq!(run(), first, "equal seeds give equal choices");
}

#[test]
fn bias_can_force_and_forbid_a_token() {
    let engine = engine(Settings::default());
    let forced = Request { bias: [(42, 100.0)].into(), ..request(&[9], 4) };
    assert_eq!(collect(engine.submit(vec![forced]).unwrap()).0, [42; 4]);
    let (free, _) = collect(engine.submit(vec![request(&[9], 4)]).unwrap());
    let forbidden = Request { bias: [(free[0], -100.0)].into(), ..request(&[9], 4) };
    assert!(!collect(engine.submit(vec![forbidden]).unwrap()).0.contains(&free[0]));
}

#[test]
fn the_log_probabilities_of_a_prompt_are_those_of_writing_it() {
    let prompt: Vec<u32> = (0..100).map(|i| 7 + i * 37 % 200).collect();
    // In pieces, beside others, and known before: nothing of it is left out.
    let engine = engine(Settings { prompt_tokens: 16, ..Settings::default() });
    collect(engine.submit(vec![request(&prompt, 3)]).unwrap());
    let asked = Request { log_probabilities: Some(2), prompt_log_probabilities: true, ..request(&prompt, 2) };
    let nothing = Request { limits: Limits { max_tokens: 0, stop: vec![] }, ..asked.clone() };
    let other = request(&[3, 4], 150);
    let mut events = engine.submit(vec![asked, nothing, other]).unwrap();
    let (mut told, mut last) = (vec![Vec::new(); 2], None);
    while let Some((index, event)) = events.blocking_next() {
        match event {
            Event::Prompt(tokens) => told[index] = tokens,
            Event::Token(token) if index == 0 => last = Some(token),
            Event::Finished(finished) if index == 1 => {
                assert_eq!((finished.reason, finished.usage.completion_tokens), (Reason::Length, 0));
                assert_eq!(finished.usage.cached_tokens, 0);
            }
            Event::Failed(problem) => panic!("{problem}"),
            Event::Token(_) | Event::Finished(_) => {}
        }
    }
    assert!(last.is_some_and(|token| token.log_probability.is_some()));
    assert_eq!(told[0], told[1]);
    assert_eq!(told[0].iter().map(|token| token.id).collect::<Vec<_>>(), prompt);
    assert_eq!(told[0][0].log_probability, None);

    let (model, cpu) = (model(), cpu());
    let mut state = model.new_state();
    let mut input = [strata_model::Input { state: &mut state, tokens: &prompt }];
    let logits = model.step(&cpu, &mut input, strata_model::Wanted::All).unwrap();
    for (at, logits) in logits.chunks_exact(model.config().vocab_size).take(prompt.len() - 1).enumerate() {
        let token = &told[0][at + 1];
        let shift = logits.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>().ln();
        let expected = f64::from(logits[prompt[at + 1] as usize]) - shift;
        let found = f64::from(token.log_probability.unwrap());
        assert!((found - expected).abs() < 1e-5, "token {at}: {found}, {expected}");
        let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        assert_eq!(logits[token.alternatives[0].0 as usize], best);
        assert_eq!(token.alternatives.len(), 2);
    }
}
