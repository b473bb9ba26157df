//! bitsandbytes' 8-bit AdamW and NF4 against values bitsandbytes computed.

use std::collections::HashMap;

use unslothify::kernels::{Backend, Cpu, Reference, StateSegment};
use unslothify::optim::{AdamW8bit, Settings, Values};
use unslothify::quant::StoredMatrix;
use unslothify::weights::Checkpoint;

use super::fixture::{Case, Tensors, Worst, max_error, root, tensors};

const LEN: usize = 5000;
/// Codes are the same, all of them: what is left is rounding. An f32 rounds by up to 6e-8 of itself; an update takes some
/// eight of those (torch fuses some of them away) and reaches half of the largest parameter, which itself is rounded once
/// a step: 2.4e-7 is four. Powers of 0.999 instead of the f32 nearest to it are seen at 4.8e-6.
const PARAMETERS: f64 = 2.4e-7;
const MAXIMA: f64 = 2.4e-7;

/// What the optimizer holds after each of three steps: parameters, codes and block maxima of both moments.
struct State {
    p: Vec<f32>,
    codes: [Vec<u8>; 2],
    absmax: [Vec<f32>; 2],
}

fn run<B: Backend>(backend: &B, golden: &Tensors, weight_decay: f64, eps: f64) -> Vec<State> {
    let (mut params, mut gradients) = (backend.full(LEN).unwrap(), backend.full(LEN).unwrap());
    backend.write_full(&mut params, 0, &golden["p"]).unwrap();
    let segments = [StateSegment { offset: 0, len: LEN, eight_bit: true }];
    let settings = Settings { betas: (0.9, 0.999), eps, weight_decay };
    let mut optimizer = AdamW8bit::new(backend, settings, &segments, LEN).unwrap();
    (1..=3)
        .map(|step| {
            backend.write_full(&mut gradients, 0, &golden[&format!("gradient{step}")]).unwrap();
            optimizer.step(backend, &mut params, &gradients, 0.1, 1.0).unwrap();
            let mut p = vec![0.0; LEN];
            backend.read_full(&params, 0, &mut p).unwrap();
            let state: HashMap<_, _> = optimizer.state(backend).unwrap().vectors.into_iter().collect();
            let bytes = |name| match &state[name] {
                Values::Bytes(values) => values.clone(),
                Values::Floats(_) => panic!("{name} holds floats"),
            };
            let floats = |name| match &state[name] {
                Values::Floats(values) => values.clone(),
                Values::Bytes(_) => panic!("{name} holds bytes"),
            };
            State { p, codes: [bytes("codes_m"), bytes("codes_v")], absmax: [floats("absmax_m"), floats("absmax_v")] }
        })
        .collect()
}

fn check<B: Backend>(backend: &B) {
    let golden = tensors(&root().join("adamw_8bit.safetensors"));
    let (mut p, mut maxima, mut decayed) = (Worst::default(), Worst::default(), Worst::default());
    for (index, state) in run(backend, &golden, 0.0, 1e-8).iter().enumerate() {
        let of = |name: &str| &golden[&format!("bitsandbytes{}.{name}", index + 1)];
        p.see(format!("step {}", index + 1), max_error(&state.p, of("p")));
        for (moment, which) in ["1", "2"].iter().enumerate() {
            let absmax = of(&format!("absmax{which}"));
            maxima.see(format!("step {} absmax{which}", index + 1), max_error(&state.absmax[moment], absmax));
            // a block of zeros decodes to zero whatever its codes
            let codes = of(&format!("codes{which}"));
            let differing = (0..LEN)
                .filter(|i| absmax[i / 256] > 0.0 && f32::from(state.codes[moment][*i]) != codes[*i])
                .collect::<Vec<_>>();
            assert!(differing.is_empty(), "step {}: codes{which} of {differing:?}", index + 1);
        }
    }
    for (index, state) in run(backend, &golden, 0.01, 1e-8).iter().enumerate() {
        let want = &golden[&format!("decay{}.p", index + 1)];
        decayed.see(format!("step {}", index + 1), max_error(&state.p, want));
    }
    p.within("adamw_8bit parameters", PARAMETERS);
    maxima.within("adamw_8bit block maxima", MAXIMA);
    decayed.within("adamw_8bit parameters with decay", PARAMETERS);
}

#[test]
fn cpu_adamw_8bit_equals_bitsandbytes() {
    check(&Cpu::new(Some(2)));
}

#[test]
fn reference_adamw_8bit_equals_bitsandbytes() {
    check(&Reference::new());
}

#[test]
fn a_wrong_epsilon_of_adamw_8bit_is_seen() {
    let golden = tensors(&root().join("adamw_8bit.safetensors"));
    let states = run(&Cpu::new(Some(1)), &golden, 0.0, 1e-4);
    assert!(max_error(&states[2].p, &golden["bitsandbytes3.p"]) > 1e-5);
}

/// The rows of a matrix as the engine would read them.
fn dequantized(matrix: &StoredMatrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows * matrix.cols];
    matrix.dequantize_rows(0..matrix.rows, &mut out);
    out
}

#[test]
fn a_base_quantised_here_equals_the_base_bitsandbytes_quantised() {
    let (whole, theirs) = (Case::open("untied"), Case::open("nf4"));
    let (whole, theirs): (Checkpoint, Checkpoint) = (whole.checkpoint(), theirs.checkpoint());
    let mut compared = 0;
    for layer in 0..whole.config().num_hidden_layers {
        for module in ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"] {
            let name = format!("model.layers.{layer}.{module}.weight");
            let ours = dequantized(&whole.matrix(&name).unwrap().quantize_nf4());
            let want = dequantized(&theirs.matrix(&name).unwrap());
            let same = ours.iter().zip(&want).filter(|(a, b)| a.to_bits() == b.to_bits()).count();
            assert_eq!(same, want.len(), "{name}");
            compared += same;
        }
    }
    assert!(compared > 100_000);
}
