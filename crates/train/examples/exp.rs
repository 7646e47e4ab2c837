//! scratch
use std::{collections::BTreeMap, sync::Arc, time::Instant};
use strata_data::{packing::*, world, *};
use strata_model::{Config, Decoder, Training};
use strata_tensor::{AdamW, Cpu, Isa, Precision};
fn arg<T: std::str::FromStr>(name: &str, d: T) -> T {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(d)
}
fn ex(messages: Vec<Message>) -> Example {
    Example { messages, weight: 1.0, origin: Origin::new("w", 1) }
}
fn cpu_time() -> f64 {
    let s = std::fs::read_to_string("/proc/self/stat").unwrap();
    let f: Vec<&str> = s.rsplit(')').next().unwrap().split_whitespace().collect();
    (f[11].parse::<f64>().unwrap() + f[12].parse::<f64>().unwrap()) / 100.0
}
fn run(t: &mut Training, mut next: impl FnMut() -> Batch, steps: usize, lr: f64, tag: &str) {
    let s0 = cpu_time();
    let t0 = Instant::now();
    let mut avg = 0.0;
    let mut toks = 0;
    for step in 0..steps {
        let b = next();
        let n: f32 = b.weights.iter().sum();
        toks += b.tokens.len();
        let loss = t
            .loss_and_gradients(
                strata_model::Batch {
                    tokens: &b.tokens,
                    targets: &b.targets,
                    weights: &b.weights,
                    starts: &b.starts,
                },
                n,
            )
            .unwrap()
            / n as f64;
        let g = t.gradient_norm();
        let p = step as f64 / steps as f64;
        let warm = (step as f64 + 1.0) / (0.03 * steps as f64 + 1.0);
        let r = lr * warm.min(1.0) * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * p).cos()));
        t.optimizer_step(r as f32, (1.0 / g).min(1.0) as f32);
        avg = if step == 0 { loss } else { 0.95 * avg + 0.05 * loss };
        if (step + 1) % (steps / 8).max(1) == 0 {
            eprintln!(
                "{tag} {}/{} loss {:.3} norm {:.2} tok/cpu-s {:.0} tok/s {:.0}",
                step + 1,
                steps,
                avg,
                g,
                toks as f64 / (cpu_time() - s0),
                toks as f64 / t0.elapsed().as_secs_f64()
            );
        }
    }
}
fn eval(
    d: &Decoder,
    cpu: &Cpu,
    tok: &Tokenizer,
    tasks: &[(Vec<Message>, String, String)],
    show: bool,
) -> f64 {
    let t0 = Instant::now();
    let prompts: Vec<Vec<u32>> = tasks.iter().map(|t| tok.encode_prompt(&t.0).unwrap()).collect();
    let out = strata_generate::generate(
        d,
        cpu,
        &prompts,
        &strata_generate::Limits { max_tokens: 40, stop: tok.eos_ids().to_vec() },
        Default::default(),
        |_, _| true,
    )
    .unwrap();
    let mut fam: BTreeMap<&str, (usize, usize, String)> = BTreeMap::new();
    for (t, o) in tasks.iter().zip(&out) {
        let text = tok.decode(&o.tokens, true).unwrap();
        let ok = text.trim() == t.1.trim();
        let e = fam.entry(&t.2).or_default();
        e.0 += ok as usize;
        e.1 += 1;
        if !ok && e.2.is_empty() {
            e.2 = format!("{} -> {:?} not {:?}", t.0.last().unwrap().content.replace('\n', " / "), text, t.1);
        }
    }
    let mut m = 0.0;
    for (k, v) in &fam {
        let a = v.0 as f64 / v.1 as f64;
        m += a;
        if show {
            eprintln!("  {k:18} {:.2}  {}", a, v.2.chars().take(230).collect::<String>());
        }
    }
    m /= fam.len() as f64;
    eprintln!("  MEAN {:.3}  ({} tasks, {:.1}s)", m, tasks.len(), t0.elapsed().as_secs_f64());
    m
}
fn main() {
    let (w, l, v, seq, rows) = (
        arg("W", 192usize),
        arg("L", 4usize),
        arg("V", 2048usize),
        arg("SEQ", 256usize),
        arg("ROWS", 16usize),
    );
    let h = w / arg("HD", 32usize);
    let f = arg("F", (w * 8 / 3).next_multiple_of(32));
    let (bs, cs, ds) = (arg("BS", 400usize), arg("CS", 400usize), arg("DS", 150usize));
    let cpu = Cpu::new(Isa::best(), arg("TH", 1usize)).unwrap();
    let world = world::World::new(1);
    let dir = std::env::temp_dir().join(format!("exp{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let docs: Vec<String> = world.base_text(world::Part::Training, arg("MB", 8usize) << 20).collect();
    let tok = Tokenizer::train(docs.iter().take(40000).map(|d| Ok(d.as_str())), v).unwrap();
    let origin = Origin::new("w", 1);
    let mk = |d: &String| Ok(Document { text: d.clone(), origin: origin.clone() });
    shards::build(docs.iter().map(mk), &tok, &shards::ShardOptions::default(), &dir).unwrap();
    let shard = Arc::new(Shard::open(&dir.join(shards::TRAIN_FILE)).unwrap());
    eprintln!("vocab {} tokens {}", tok.vocab_size(), shard.tokens());
    let config = Config {
        vocab_size: tok.vocab_size(),
        width: w,
        layers: l,
        heads: h,
        kv_heads: h,
        head_dim: w / h,
        ffn: f,
        max_positions: 512,
        norm_epsilon: 1e-5,
        rope_theta: arg("THETA", 1e4),
        rope_scaling: None,
        tied: arg("TIED", 0) == 1,
        bos: tok.bos_id(),
        eos: tok.eos_ids().to_vec(),
    };
    let lr = arg("LR", 3e-3f64);
    let opt = AdamW { betas: (0.9, arg("B2", 0.95f32)), epsilon: 1e-8, weight_decay: 0.1 };
    let mut t = Training::new(Decoder::new(&config, 1).unwrap(), cpu.clone(), Precision::F32, opt);
    eprintln!("params {}", t.decoder().parameter_count());
    let mut bb =
        BaseBatches::new(shard, BatchOptions { rows, sequence: seq, seed: 1, endless: true }).unwrap();
    run(&mut t, || bb.next_batch().unwrap().unwrap(), bs, lr, "base");
    let um = |p: &str| Message::new(Role::User, p);
    let tasks: Vec<_> = world
        .tasks(world::Part::HeldOut, arg("N", 20))
        .into_iter()
        .map(|t| (vec![um(&t.prompt)], t.answer, t.family.to_string()))
        .collect();
    let role = |r: world::Role| if r.as_str() == "user" { Role::User } else { Role::Assistant };
    let dtasks: Vec<_> = world
        .dialogue_tasks(world::Part::HeldOut, 300)
        .into_iter()
        .map(|t| {
            (
                t.messages.into_iter().map(|(r, c)| Message::new(role(r), c)).collect::<Vec<_>>(),
                t.answer,
                t.family.to_string(),
            )
        })
        .collect();
    if arg("EB", 0) == 1 {
        eval(t.decoder(), &cpu, &tok, &tasks, false);
    }
    let pairs: Vec<_> = world
        .pairs(world::Part::Training, arg("NP", 60000usize))
        .into_iter()
        .map(|p| ex(vec![um(&p.prompt), Message::new(Role::Assistant, p.response)]))
        .collect();
    let exs = Arc::new(tokenise_examples(&tok, &pairs).unwrap());
    eprintln!(
        "pair tokens {} mean {:.1}",
        exs.iter().map(|e| e.ids.len()).sum::<usize>(),
        exs.iter().map(|e| e.ids.len()).sum::<usize>() as f64 / exs.len() as f64
    );
    let pad = tok.pad_id().unwrap();
    let crows = arg("CROWS", rows);
    let mut eb =
        ExampleBatches::new(exs, BatchOptions { rows: crows, sequence: seq, seed: 1, endless: true }, pad)
            .unwrap();
    run(&mut t, || eb.next_batch().unwrap(), cs, arg("CLR", lr), "command");
    eval(t.decoder(), &cpu, &tok, &tasks, true);
    eval(t.decoder(), &cpu, &tok, &dtasks, false);
    if ds > 0 {
        let dial: Vec<_> = world
            .dialogues(world::Part::Training, 20000)
            .into_iter()
            .map(|p| ex(p.messages.into_iter().map(|(r, c)| Message::new(role(r), c)).collect()))
            .collect();
        let exs = Arc::new(tokenise_examples(&tok, &dial).unwrap());
        let mut eb = ExampleBatches::new(
            exs,
            BatchOptions { rows: crows, sequence: seq, seed: 1, endless: true },
            pad,
        )
        .unwrap();
        run(&mut t, || eb.next_batch().unwrap(), ds, arg("DLR", lr * 0.5), "dialogue");
        eval(t.decoder(), &cpu, &tok, &dtasks, true);
        eval(t.decoder(), &cpu, &tok, &tasks, false);
    }
}
