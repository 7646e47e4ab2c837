//! scratch
use std::time::Instant;
use strata_model::*;
use strata_tensor::*;
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|x| x.parse().unwrap()).collect();
    let (w, l, h, f, v, seq, b) = (a[0], a[1], a[2], a[3], a[4], a[5], a[6]);
    let config = Config {
        vocab_size: v,
        width: w,
        layers: l,
        heads: h,
        kv_heads: h,
        head_dim: w / h,
        ffn: f,
        max_positions: seq,
        norm_epsilon: 1e-5,
        rope_theta: 1e4,
        rope_scaling: None,
        tied: false,
        bos: None,
        eos: vec![],
    };
    let cpu = Cpu::new(Isa::best(), 2).unwrap();
    let mut t = Training::new(
        Decoder::new(&config, 1).unwrap(),
        cpu,
        if a.len() > 7 { Precision::Bf16 } else { Precision::F32 },
        AdamW::default(),
    );
    let n = seq * b;
    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % v) as u32).collect();
    let wts = vec![1.0; n];
    let starts: Vec<u32> = (0..b).map(|i| (i * seq) as u32).collect();
    let flops = 6.0 * ((l * (4 * w * w + 3 * w * f) + v * w) as f64) + 6.0 * (l * w * seq) as f64;
    for _ in 0..4 {
        let s = Instant::now();
        let loss = t
            .loss_and_gradients(
                Batch { tokens: &tokens, targets: &tokens, weights: &wts, starts: &starts },
                n as f32,
            )
            .unwrap();
        let m = s.elapsed();
        let g = t.gradient_norm();
        t.optimizer_step(3e-4, (1.0 / g).min(1.0) as f32);
        let e = s.elapsed().as_secs_f64();
        println!(
            "loss {:.3} {:.0} tok/s {:.1} GFLOP/s  pass {:?} total {:.3}",
            loss / n as f64,
            n as f64 / e,
            flops * n as f64 / e / 1e9,
            m,
            e
        );
    }
}
