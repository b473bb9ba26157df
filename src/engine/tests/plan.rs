//! What is kept and what is computed again must not change a gradient, and the bytes must be those of the buffers.

use super::super::plan::{Level, Plan, Sizes};
use super::*;
use crate::kernels::cuda::Dtype;
use crate::kernels::{Backend, Cuda};

const LAYERS: usize = 4;
const SHAPE: Shape = Shape { layers: LAYERS, ..SMALL };

fn levels(level: Level) -> Vec<Level> {
    vec![level; LAYERS]
}

/// The gradients of two micro-batches under a plan, with an evaluation between a forward and its backward.
fn gradients<B: Backend>(backend: B, config: &LoraConfig, change: impl Fn(&mut Plan)) -> Vec<f32> {
    let texts = texts();
    let mut engine = engine(backend, SHAPE, config);
    let sizes = engine.sizes();
    let mut plan = Plan::everything(&sizes, 13);
    change(&mut plan);
    engine.take_plan(plan, &sizes, false).unwrap();
    engine.forward(&texts.batch(), Mode::Train, 4.0).unwrap();
    engine.backward(1.0).unwrap();
    engine.forward(&texts.batch(), Mode::Train, 3.0).unwrap();
    let other = Batch { ids: &[9, 8, 7, 6], cu_seqlens: &[0, 4], targets: &[1, 2, 3, IGNORE] };
    engine.forward(&other, Mode::Evaluate, 3.0).unwrap();
    engine.backward(0.5).unwrap();
    flatten(&engine.gradients().unwrap())
}

#[test]
fn every_level_gives_the_same_bits() {
    for config in [lora(&MODULES), lora(&["q_proj", "down_proj"])] {
        let all = gradients(Cpu::new(Some(1)), &config, |_| ());
        assert!(all.iter().any(|&value| value != 0.0));
        for level in [Level::Input, Level::Attention, Level::Middle] {
            let got = gradients(Cpu::new(Some(1)), &config, |plan| plan.levels = levels(level));
            assert!(got == all, "{level:?}");
        }
        let mixed = [Level::Input, Level::All, Level::Attention, Level::Middle];
        let got = gradients(Cpu::new(Some(1)), &config, |plan| plan.levels = mixed.to_vec());
        assert!(got == all, "mixed");
    }
}

#[test]
fn inputs_outside_the_device_give_the_same_bits() {
    let some = LoraConfig { layers_to_transform: Some(vec![1, 3]), ..lora(&MODULES) };
    for config in [lora(&MODULES), some] {
        let all = gradients(Cpu::new(Some(1)), &config, |_| ());
        for level in [Level::Input, Level::Middle, Level::All] {
            let got = gradients(Cpu::new(Some(1)), &config, |plan| {
                plan.levels = levels(level);
                plan.offload = true;
            });
            assert!(got == all, "{level:?}");
        }
    }
}

#[test]
fn tiles_of_the_mlp_give_the_same_gradient() {
    // the sums over tokens are added tile by tile, so the last bits may differ in f32; in f64 nothing else may
    for config in [lora(&MODULES), lora(&["gate_proj"]), lora(&["down_proj"]), lora(&["k_proj"])] {
        let all = gradients(Reference::new(), &config, |_| ());
        for (tile, level) in [(1, Level::Input), (4, Level::Middle), (5, Level::Attention), (12, Level::Input)] {
            let got = gradients(Reference::new(), &config, |plan| {
                plan.tile = Some(tile);
                plan.levels = levels(level);
                plan.offload = tile == 4;
            });
            assert!(distance(&got, &all) < 1e-7, "tiles of {tile}: {}", distance(&got, &all));
        }
    }
}

#[test]
fn layers_below_the_lowest_adapter_keep_nothing() {
    let config = LoraConfig { layers_to_transform: Some(vec![2]), ..lora(&["o_proj"]) };
    let all = gradients(Cpu::new(Some(1)), &config, |_| ());
    let got = gradients(Cpu::new(Some(1)), &config, |plan| {
        plan.levels = levels(Level::Input);
        plan.offload = true;
    });
    assert!(got == all);
    let engine = engine(Cpu::new(Some(1)), SHAPE, &config);
    assert_eq!(engine.sizes().lowest, 2);
}

#[test]
fn a_larger_pass_makes_a_larger_plan() {
    let texts = texts();
    let mut engine = engine(Cpu::new(Some(1)), SHAPE, &lora(&MODULES));
    let small = Batch { ids: &[9, 8, 7, 6], cu_seqlens: &[0, 4], targets: &[1, 2, 3, IGNORE] };
    for (batch, tokens) in [(small, 4), (texts.batch(), 13), (small, 13)] {
        engine.forward(&batch, Mode::Train, 4.0).unwrap();
        engine.backward(1.0).unwrap();
        assert_eq!(engine.plan().unwrap().tokens, tokens);
    }
    engine.forward(&small, Mode::Train, 4.0).unwrap();
    assert!(matches!(engine.plan_for(99), Err(Error::PassPending)));
}

/// Mistral-7B with r = 16 on all linears, in bf16.
const MISTRAL: Sizes = Sizes {
    layers: 32,
    lowest: 0,
    hidden: 4096,
    wide: 14336,
    heads: 32,
    queries: 4096,
    qkv: 6144,
    head_rows: 1024,
    vocabulary: 32768,
    ranks: [48, 16, 32, 16],
    attention: 0,
    act: 2,
    full: 4,
};

const GB: usize = 1_000_000_000;
const BASE: usize = 5 * GB;

fn choose(tokens: usize, memory: Memory, free: usize) -> Result<Plan> {
    Plan::choose(&MISTRAL, tokens, memory, Some((BASE, free)), true)
}

#[test]
fn modes_take_what_they_say() {
    let speed = choose(4096, Memory::Speed, 70 * GB).unwrap();
    assert_eq!((speed.computed_twice(), speed.offload, speed.tile), (0, false, None));
    // 94.6 KB a token and layer, and the state of the layer at hand
    assert!((12 * GB..14 * GB).contains(&speed.bytes()), "{}", speed.bytes());

    let balanced = choose(4096, Memory::Balanced, 70 * GB).unwrap();
    assert!(balanced.offload && balanced.tile.is_none());
    assert!(balanced.bytes() <= 64 * 4096 * 4096, "{}", balanced.bytes());
    assert!(balanced.computed_twice() >= 30);

    let lean = choose(4096, Memory::Lean, 70 * GB).unwrap();
    assert!(lean.offload && lean.tile == Some(2048));
    assert!(lean.bytes() < balanced.bytes());

    // a short pass keeps everything even when balanced, and sends nothing over the bus
    let short = choose(136, Memory::Balanced, 70 * GB).unwrap();
    assert_eq!((short.computed_twice(), short.offload), (0, false));
}

#[test]
fn a_budget_is_kept_and_used() {
    let mut before = usize::MAX;
    for budget in (6..20).map(|gb| gb * GB) {
        let plan = choose(4096, Memory::Bytes(budget as u64), 70 * GB).unwrap();
        assert!(plan.peak().unwrap() <= budget, "{budget}");
        assert!(plan.computed_twice() <= before, "more memory must not mean more work: {budget}");
        before = plan.computed_twice();
    }
    assert_eq!(before, 0);
    // a layer's whole state is 0.35 GB: nothing larger than that stays unused
    let plan = choose(4096, Memory::Bytes(12 * GB as u64), 70 * GB).unwrap();
    assert!(12 * GB - plan.peak().unwrap() < GB * 36 / 100, "{}", plan.peak().unwrap());
}

#[test]
fn what_does_not_fit_is_refused_with_the_least_that_does() {
    let error = choose(8192, Memory::Bytes(5 * GB as u64 + 1000), 70 * GB).unwrap_err();
    let Error::Memory { tokens: 8192, needed, .. } = error else { panic!("{error}") };
    assert!(choose(8192, Memory::Bytes(needed as u64), 70 * GB).is_ok());
    assert!(choose(8192, Memory::Bytes(needed as u64 - 1), 70 * GB).is_err());
    for memory in [Memory::Lean, Memory::Balanced, Memory::Speed] {
        assert!(choose(4096, memory, GB / 2).is_err(), "{memory:?}");
        // on a small card every mode finds the way that fits
        let plan = choose(4096, memory, GB * 9 / 10).unwrap();
        assert!(plan.bytes() <= GB * 9 / 10, "{memory:?}");
    }
}

#[test]
fn memory_is_read_from_words_and_bytes() {
    let cases = [("lean", Memory::Lean), ("speed", Memory::Speed), ("balanced", Memory::Balanced)];
    let bytes = [("7GB", 7_000_000_000), ("6.5 GiB", 6_979_321_856), ("900MB", 900_000_000)];
    for (text, wanted) in cases.into_iter().chain(bytes.map(|(text, bytes)| (text, Memory::Bytes(bytes)))) {
        assert_eq!(text.parse(), Ok(wanted), "{text}");
    }
    for wrong in ["", "7", "GB", "-1GB", "nanGB", "infGB", "0GB", "fast", "7gb"] {
        assert!(wrong.parse::<Memory>().is_err(), "{wrong}");
    }
}

/// On a GPU the buffers are sized before the pass and the inputs leave by a stream of their own.
fn on_gpu(dtype: Dtype, is_split: bool, change: impl Fn(&mut Plan)) -> Vec<f32> {
    gradients(Cuda::new(0, Some(dtype)).unwrap().with_small_scratch(is_split), &lora(&MODULES), change)
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn gpu_plans_give_the_same_gradient() {
    if std::env::var("UNSLOTHIFY_TEST_GPU").as_deref() != Ok("1") {
        println!("not run: UNSLOTHIFY_TEST_GPU=1 runs it, on a machine with a GPU");
        return;
    }
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let all = on_gpu(dtype, false, |_| ());
        assert!(all.iter().any(|&value| value != 0.0));
        assert!(on_gpu(dtype, false, |_| ()) == all, "from run to run, {dtype:?}");
        for level in [Level::Input, Level::Attention, Level::Middle, Level::All] {
            for offload in [false, true] {
                let got = on_gpu(dtype, false, |plan| {
                    plan.levels = levels(level);
                    plan.offload = offload;
                });
                assert!(got == all, "{level:?}, offload {offload}, {dtype:?}: {}", distance(&got, &all));
            }
        }
    }
    let all = on_gpu(Dtype::F32, false, |_| ());
    for tile in [1, 4, 12] {
        let got = on_gpu(Dtype::F32, false, |plan| {
            plan.tile = Some(tile);
            plan.levels = levels(Level::Input);
            plan.offload = true;
        });
        assert!(distance(&got, &all) < 1e-5, "tiles of {tile}: {}", distance(&got, &all));
    }
    let cpu = gradients(Cpu::new(Some(1)), &lora(&MODULES), |_| ());
    assert!(distance(&all, &cpu) < 1e-4, "{}", distance(&all, &cpu));
}

#[test]
fn another_adapter_ends_the_plan_and_keeps_its_prediction() {
    let config = lora(&MODULES);
    let mut engine = engine(Cpu::new(Some(1)), SHAPE, &config);
    let sizes = engine.sizes();
    engine.take_plan(Plan { used: Some(5), ..Plan::everything(&sizes, 13) }, &sizes, false).unwrap();
    let predicted = engine.predicted_bytes();
    assert!(predicted.is_some_and(|bytes| bytes > 5));
    engine.forward(&texts().batch(), Mode::Train, 4.0).unwrap();
    engine.backward(1.0).unwrap();
    assert!(engine.remove_lora().unwrap());
    assert!(engine.plan().is_none() && engine.kept.layers().is_empty(), "its buffers are given back");
    engine.add_lora(&LoraConfig { r: 5, ..config }).unwrap();
    engine.forward(&texts().batch(), Mode::Train, 4.0).unwrap();
    engine.backward(1.0).unwrap();
    assert_eq!(engine.plan().map(|plan| plan.tokens), Some(13));
}

#[test]
fn layers_without_a_backward_are_not_called_computed_twice() {
    let sizes = Sizes { lowest: 28, ..MISTRAL };
    let plan = Plan::choose(&sizes, 4096, Memory::Lean, Some((BASE, 70 * GB)), true).unwrap();
    assert_eq!(plan.computed_twice(), 4, "three below the last, and the last one's MLP in tiles");
}
