//! Times every operation of the CPU backend at the shapes of small models: `cargo bench --bench kernels [filter] [threads]`.
//!
//! Prints the best of many repetitions, since other work on the machine only ever adds time.

use std::hint::black_box;
use std::time::Instant;

use unslothify::kernels::{AdamWStep, Attention, Backend, Cpu, LoraGroup, LoraPart, StateSegment};
use unslothify::quant::{StoredMatrix, StoredValues};

/// What a repetition does, for the rate beside its time.
enum Work {
    Flops(usize),
    Bytes(usize),
}

struct Bench {
    cpu: Cpu,
    filter: String,
}

impl Bench {
    fn time(&self, name: &str, work: &Work, mut run: impl FnMut() + Send) {
        if !name.contains(&self.filter) {
            return;
        }
        let best = self.cpu.run(|| {
            let mut best = f64::INFINITY;
            let started = Instant::now();
            let mut repetitions = 0;
            while repetitions < 5 || (started.elapsed().as_secs_f64() < 0.4 && repetitions < 2000) {
                let begun = Instant::now();
                run();
                best = best.min(begun.elapsed().as_secs_f64());
                repetitions += 1;
            }
            best
        });
        let (rate, unit) = match work {
            Work::Flops(flops) => (*flops as f64 / best / 1e9, "GFLOP/s"),
            Work::Bytes(bytes) => (*bytes as f64 / best / 1e9, "GB/s"),
        };
        println!("{name:<48} {:>10.1} us {rate:>8.1} {unit}", best * 1e6);
    }
}

fn values(len: usize) -> Vec<f32> {
    (0..len).map(|i| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0).collect()
}

fn act(cpu: &Cpu, rows: usize, cols: usize) -> <Cpu as Backend>::Act {
    let mut act = cpu.act();
    let written = cpu.write_act(&mut act, rows, cols, &values(rows * cols));
    assert!(written.is_ok());
    act
}

fn stored(rows: usize, cols: usize) -> StoredMatrix {
    StoredMatrix { rows, cols, values: StoredValues::F32(values(rows * cols)) }
}

type Outcome = unslothify::kernels::Result<()>;

fn linear(bench: &Bench, rows: usize, hidden: usize, out: usize) -> Outcome {
    let cpu = &bench.cpu;
    let weight = cpu.weight(vec![stored(out, hidden)])?;
    let rank = 16;
    let part = LoraPart { rank, a: 0, b: rank * hidden, s_start: 0, out_start: 0, out_len: out, scale: 1.0 };
    let group = LoraGroup { in_features: hidden, rank, parts: vec![part] };
    let mut params = cpu.full(rank * (hidden + out))?;
    cpu.write_full(&mut params, 0, &values(rank * (hidden + out)))?;
    let mut gradients = cpu.full(rank * (hidden + out))?;
    let (x, dy, residual) = (act(cpu, rows, hidden), act(cpu, rows, out), act(cpu, rows, out));
    let (mut s, mut ds) = (act(cpu, rows, rank), act(cpu, rows, rank));
    let (mut y, mut dx) = (cpu.act(), cpu.act());
    let shape = format!("{rows}x{hidden}x{out}");
    let flops = 2 * rows * hidden * out;
    bench.time(&format!("linear {shape}"), &Work::Flops(flops), || {
        black_box(cpu.linear(&x, &weight, None, None, &mut y).is_ok());
    });
    bench.time(&format!("linear {shape} lora residual"), &Work::Flops(flops + 2 * rows * out * rank), || {
        black_box(cpu.linear(&x, &weight, Some((&group, &params, &s)), Some(&residual), &mut y).is_ok());
    });
    bench.time(&format!("linear_backward {shape} lora"), &Work::Flops(flops + 2 * rows * hidden * rank), || {
        black_box(cpu.linear_backward(&dy, &weight, Some((&group, &params, &ds)), &mut dx).is_ok());
    });
    let mut fresh = cpu.act();
    bench.time(&format!("lora_down {shape} r16"), &Work::Flops(2 * rows * hidden * rank), || {
        black_box(cpu.lora_down(&x, &group, &params, &mut fresh).is_ok());
    });
    bench.time(&format!("lora_up_backward {shape} r16"), &Work::Flops(2 * rows * out * rank), || {
        black_box(cpu.lora_up_backward(&dy, &group, &params, &mut ds).is_ok());
    });
    bench.time(&format!("lora_gradients {shape} r16"), &Work::Flops(2 * rows * (hidden + out) * rank), || {
        black_box(cpu.lora_gradients(&x, &s, &dy, &ds, &group, &mut gradients).is_ok());
    });
    cpu.scale(&mut s, 1.0)
}

fn attention(bench: &Bench, texts: usize, len: usize, geometry: (usize, usize, usize)) -> Outcome {
    let cpu = &bench.cpu;
    let (heads, kv_heads, head_dim) = geometry;
    let attention = Attention { heads, kv_heads, head_dim, window: None };
    let rows = texts * len;
    let width = (heads + 2 * kv_heads) * head_dim;
    let mut qkv = act(cpu, rows, width);
    let cu_seqlens: Vec<u32> = (0..=texts).map(|text| (text * len) as u32).collect();
    let segments = cpu.segments(&cu_seqlens, 0)?;
    let (mut o, mut lse, mut dqkv) = (cpu.act(), cpu.full(0)?, cpu.act());
    let name = format!("{texts}x{len} heads {heads}/{kv_heads} of {head_dim}");
    // Half of the scores are masked: 2 products forward, 5 backward.
    let flops = texts * heads * head_dim * len * (len + 1);
    bench.time(&format!("attention {name}"), &Work::Flops(2 * flops), || {
        black_box(cpu.attention(&qkv, &segments, &attention, &mut o, &mut lse).is_ok());
    });
    let do_ = act(cpu, rows, heads * head_dim);
    cpu.attention(&qkv, &segments, &attention, &mut o, &mut lse)?;
    bench.time(&format!("attention_backward {name}"), &Work::Flops(5 * flops), || {
        black_box(cpu.attention_backward(&do_, &qkv, &o, &lse, &segments, &attention, &mut dqkv).is_ok());
    });
    let mut frequencies = cpu.full(head_dim / 2)?;
    cpu.write_full(&mut frequencies, 0, &values(head_dim / 2))?;
    bench.time(&format!("rope {name}"), &Work::Bytes(8 * rows * (heads + kv_heads) * head_dim), || {
        black_box(cpu.rope(&mut qkv, &segments, &attention, &frequencies, 1.0).is_ok());
    });
    Ok(())
}

fn elementwise(bench: &Bench, rows: usize, hidden: usize, inter: usize) -> Outcome {
    let cpu = &bench.cpu;
    let shape = format!("{rows}x{hidden}");
    let (x, dy, mut dx) = (act(cpu, rows, hidden), act(cpu, rows, hidden), act(cpu, rows, hidden));
    let weight = cpu.full(hidden)?;
    let (mut y, mut rstd) = (cpu.act(), cpu.full(0)?);
    bench.time(&format!("rms_norm {shape}"), &Work::Bytes(8 * rows * hidden), || {
        black_box(cpu.rms_norm(&x, &weight, 1e-5, &mut y, &mut rstd).is_ok());
    });
    bench.time(&format!("rms_norm_backward_add {shape}"), &Work::Bytes(16 * rows * hidden), || {
        black_box(cpu.rms_norm_backward_add(&dy, &x, &weight, &rstd, &mut dx).is_ok());
    });
    let (mut gate_up, mut dh, mut h) = (act(cpu, rows, 2 * inter), act(cpu, rows, inter), cpu.act());
    let shape = format!("{rows}x{inter}");
    bench.time(&format!("swiglu {shape}"), &Work::Bytes(12 * rows * inter), || {
        black_box(cpu.swiglu(&gate_up, &mut h).is_ok());
    });
    bench.time(&format!("swiglu_backward {shape}"), &Work::Bytes(24 * rows * inter), || {
        black_box(cpu.swiglu_backward(&mut dh, &mut gate_up).is_ok());
    });
    Ok(())
}

fn cross_entropy(bench: &Bench, rows: usize, vocabulary: usize) -> Outcome {
    let cpu = &bench.cpu;
    let mut logits = act(cpu, rows, vocabulary);
    let targets = cpu.index(&(0..rows as u32).collect::<Vec<_>>())?;
    bench.time(&format!("cross_entropy {rows}x{vocabulary}"), &Work::Bytes(8 * rows * vocabulary), || {
        black_box(cpu.cross_entropy(&mut logits, &targets, 1.0).is_ok());
    });
    Ok(())
}

fn optimizer(bench: &Bench, len: usize) -> Outcome {
    let cpu = &bench.cpu;
    let full = || cpu.full(len);
    let (mut params, mut gradients, mut m, mut v) = (full()?, full()?, full()?, full()?);
    cpu.write_full(&mut gradients, 0, &values(len))?;
    let (mut codes_m, mut codes_v) = (cpu.bytes(len)?, cpu.bytes(len)?);
    let (mut absmax_m, mut absmax_v) = (cpu.full(len.div_ceil(256))?, cpu.full(len.div_ceil(256))?);
    let segments: Vec<StateSegment> =
        (0..len / 8192).map(|i| StateSegment { offset: i * 8192, len: 8192, eight_bit: true }).collect();
    let step =
        AdamWStep { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, step: 3, gradient_scale: 1.0 };
    bench.time(&format!("adamw {len}"), &Work::Bytes(28 * len), || {
        black_box(cpu.adamw(&mut params, &gradients, &mut m, &mut v, &segments, &step).is_ok());
    });
    bench.time(&format!("adamw_8bit {len}"), &Work::Bytes(16 * len), || {
        let (codes, absmax, full) = ((&mut codes_m, &mut codes_v), (&mut absmax_m, &mut absmax_v), (&mut m, &mut v));
        black_box(cpu.adamw_8bit(&mut params, &gradients, codes, absmax, full, &segments, &step).is_ok());
    });
    bench.time(&format!("sum_squares {len}"), &Work::Bytes(4 * len), || {
        black_box(cpu.sum_squares(&gradients).is_ok());
    });
    Ok(())
}

fn main() -> Outcome {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let threads = arguments.get(1).and_then(|threads| threads.parse().ok());
    let bench = Bench { cpu: Cpu::new(threads), filter: arguments.first().cloned().unwrap_or_default() };
    for rows in [160, 512, 1024] {
        for (hidden, out) in [(256, 512), (256, 1408), (704, 256), (256, 4096), (576, 3072), (1536, 576)] {
            linear(&bench, rows, hidden, out)?;
        }
        elementwise(&bench, rows, 256, 704)?;
        cross_entropy(&bench, rows, 4096)?;
    }
    for (texts, len) in [(8, 20), (4, 128), (2, 512), (1, 2048)] {
        attention(&bench, texts, len, (8, 2, 32))?;
        attention(&bench, texts, len, (9, 3, 64))?;
    }
    elementwise(&bench, 512, 576, 1536)?;
    cross_entropy(&bench, 80, 49152)?;
    optimizer(&bench, 720_896)
}
