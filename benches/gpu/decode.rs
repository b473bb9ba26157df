//! Greedy decoding, one text: a prompt, then 128 tokens, each chosen on the host as `generate` chooses it.
//!
//! Tokens per second are of wall clock from the first token after the prompt to the last. GB/s are the weights' bytes
//! (the embedding counts no more than a row) over the median step. The table is one step with an event around each
//! operation, which is then started by itself; else a step is one recording.

use std::time::Instant;

use unslothify::engine::{Engine, LoadOptions};
use unslothify::generate::Sampling;
use unslothify::kernels::Cuda;

use super::{Arguments, VOCABULARY, config, lora};

const NEW: usize = 128;
const PROMPTS: [usize; 2] = [16, 4000];

pub fn run(given: &Arguments) {
    let backend = Cuda::new(0, given.dtype).unwrap();
    let (device, dtype) = (backend.device().clone(), backend.dtype());
    let options = LoadOptions { load_in_4bit: true, memory: given.memory };
    let mut engine = Engine::random(backend, config(given.layers), 1, &options).unwrap();
    engine.add_lora(&lora(given.rank)).unwrap();
    let read = engine.weight_bytes() - VOCABULARY * 4096 * 2 + engine.trainable_parameters() * dtype.bytes();
    println!("decode: {} layers, r={}, {}, {:.2} GB a step", given.layers, given.rank, dtype.name(), read as f64 / 1e9);
    for prompt in PROMPTS {
        // the second time is counted: buffers and tables are there
        for is_counted in [false, true] {
            let mut ids: Vec<u32> = (0..prompt as u32).map(|i| (i * 7919 + 13) % VOCABULARY as u32).collect();
            let mut cache = engine.cache();
            let start = Instant::now();
            let mut logits = engine.decode(&ids, &mut cache).unwrap();
            let prefill = start.elapsed().as_secs_f64() * 1e3;
            let (start, mut times) = (Instant::now(), Vec::new());
            for position in 0..NEW as u64 {
                let begun = Instant::now();
                ids.push(Sampling::default().choose(&logits, &ids, position).unwrap());
                logits = engine.decode(&ids[ids.len() - 1..], &mut cache).unwrap();
                times.push(begun.elapsed().as_secs_f64() * 1e3);
            }
            let seconds = start.elapsed().as_secs_f64();
            if !is_counted {
                continue;
            }
            times.sort_by(f64::total_cmp);
            let median = times[NEW / 2];
            println!(
                "  prompt {prompt}: read in {prefill:.1} ms; {:.1} tokens/s, median {median:.3} ms/step (fastest {:.3}), \
                 {:.0} GB/s",
                NEW as f64 / seconds,
                times[0],
                read as f64 / median / 1e6
            );
            device.measure(true);
            engine.decode(&ids[ids.len() - 1..], &mut cache).unwrap();
            let rows = device.measured().unwrap();
            device.measure(false);
            for (name, time, calls) in &rows {
                println!("  {name:<32} {time:>9.3} {calls:>7}");
            }
            println!("  {:<32} {:>9.3}", "sum", rows.iter().map(|row| row.1).sum::<f64>());
        }
    }
}
