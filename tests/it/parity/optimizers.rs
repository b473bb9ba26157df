//! bitsandbytes' 8-bit AdamW and NF4 against values bitsandbytes computed.

use unslothify::kernels::{AdamWStep, Backend, Cpu, Reference, StateSegment};
use unslothify::quant::StoredMatrix;
use unslothify::weights::Checkpoint;

use super::fixture::{Case, Tensors, Worst, max_error, root, tensors};

const LEN: usize = 5000;

/// What the optimizer holds after each of three steps: parameters, codes and block maxima of both moments.
struct State {
    p: Vec<f32>,
    codes: [Vec<u8>; 2],
    absmax: [Vec<f32>; 2],
}

fn run<B: Backend>(backend: &B, golden: &Tensors, weight_decay: f64, epsilon: f64) -> Vec<State> {
    let blocks = LEN.div_ceil(256);
    let (mut params, mut gradients) = (backend.full(LEN).unwrap(), backend.full(LEN).unwrap());
    backend.write_full(&mut params, 0, &golden["p"]).unwrap();
    let (mut codes1, mut codes2) = (backend.bytes(LEN).unwrap(), backend.bytes(LEN).unwrap());
    let (mut absmax1, mut absmax2) = (backend.full(blocks).unwrap(), backend.full(blocks).unwrap());
    let (mut m, mut v) = (backend.full(0).unwrap(), backend.full(0).unwrap());
    let segments = [StateSegment { offset: 0, len: LEN, eight_bit: true }];
    let read = |full: &B::Full| {
        let mut values = vec![0.0; backend.full_len(full)];
        backend.read_full(full, 0, &mut values).unwrap();
        values
    };
    (1..=3)
        .map(|step| {
            backend.write_full(&mut gradients, 0, &golden[&format!("gradient{step}")]).unwrap();
            let constants =
                AdamWStep { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: epsilon, weight_decay, step, gradient_scale: 1.0 };
            let (codes, absmax) = ((&mut codes1, &mut codes2), (&mut absmax1, &mut absmax2));
            let full = (&mut m, &mut v);
            backend.adamw_8bit(&mut params, &gradients, codes, absmax, full, &segments, &constants).unwrap();
            State {
                p: read(&params),
                codes: [backend.read_bytes(&codes1).unwrap(), backend.read_bytes(&codes2).unwrap()],
                absmax: [read(&absmax1), read(&absmax2)],
            }
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
            // a block of zeros decodes to zero whatever its codes; a value on a midpoint may fall either way
            let codes = of(&format!("codes{which}"));
            let differ = (0..LEN)
                .filter(|i| absmax[i / 256] > 0.0)
                .map(|i| (f32::from(state.codes[moment][i]) - codes[i]).abs())
                .filter(|difference| *difference > 0.0);
            let (differing, furthest) = differ.fold((0, 0f32), |(n, most), d| (n + 1, most.max(d)));
            assert!(differing <= 10 && furthest <= 1.0, "step {index}: {differing} codes{which}, by up to {furthest}");
        }
    }
    for (index, state) in run(backend, &golden, 0.01, 1e-8).iter().enumerate() {
        let want = &golden[&format!("decay{}.p", index + 1)];
        decayed.see(format!("step {}", index + 1), max_error(&state.p, want));
    }
    // a code on a midpoint that falls the other way moves what is computed from it in the next step
    p.within("adamw_8bit parameters", 5e-6);
    maxima.within("adamw_8bit block maxima", 5e-5);
    decayed.within("adamw_8bit parameters with decay", 5e-6);
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
