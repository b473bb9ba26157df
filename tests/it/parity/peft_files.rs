//! Adapter folders go both ways between PEFT and us.

use std::path::Path;
use std::process::Command;

use unslothify::engine::{Engine, Mode};
use unslothify::kernels::{AdamWStep, Backend, Cpu};
use unslothify::weights::adapter;

use super::fixture::{CASES, Case, max_error, put_adapter};

/// Writes the engine's adapter as a folder PEFT reads.
fn save<B: Backend>(engine: &Engine<B>, case: &Case, folder: &Path) {
    let (config, _) = adapter::read(&case.adapter_folder()).unwrap();
    let tensors: Vec<adapter::AdapterTensor> = engine
        .adapter_tensors()
        .unwrap()
        .into_iter()
        .map(|t| adapter::AdapterTensor { name: t.name(), shape: t.shape, values: t.values })
        .collect();
    adapter::write(folder, &config, &tensors).unwrap();
}

/// One update, so that what is saved is not what was read.
fn update<B: Backend>(engine: &mut Engine<B>, case: &Case) {
    let rows = case.rows(1);
    engine.forward(&rows.batch(), Mode::Train, rows.target_count() as f64).unwrap();
    engine.backward(1.0).unwrap();
    let len = engine.backend().full_len(engine.flat().unwrap().params);
    let (mut m, mut v) = (engine.backend().full(len).unwrap(), engine.backend().full(len).unwrap());
    let step =
        AdamWStep { lr: 1e-2, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, step: 1, gradient_scale: 1.0 };
    let flat = engine.flat_mut().unwrap();
    flat.backend.adamw(flat.params, flat.gradients, &mut m, &mut v, flat.segments, &step).unwrap();
}

#[test]
fn a_saved_adapter_reads_back_to_the_same_bits() {
    for name in CASES {
        let case = Case::open(name);
        let mut engine = case.engine(Cpu::new(Some(1)));
        update(&mut engine, &case);
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().join("adapter");
        save(&engine, &case, &at);
        let mut again = case.base(Cpu::new(Some(1)));
        put_adapter(&mut again, &at, |config| config);
        assert_eq!(engine.lora().unwrap().scale(), again.lora().unwrap().scale(), "{name}");
        assert_eq!(engine.adapter_tensors().unwrap(), again.adapter_tensors().unwrap(), "{name}");
        let rows = case.rows(0);
        let (a, b) = (engine.logits(&rows.batch()).unwrap(), again.logits(&rows.batch()).unwrap());
        assert_eq!(max_error(&a, &b), 0.0, "{name}");
    }
}

/// Needs a Python with torch, transformers, peft (and bitsandbytes) in `UNSLOTHIFY_TEST_PYTHON`; run with
/// `cargo test --test it -- --ignored adapter_in_peft`.
#[test]
#[ignore = "not run: needs Python with peft, see UNSLOTHIFY_TEST_PYTHON"]
fn our_adapter_in_peft_matches_every_key_and_gives_our_logits() {
    let python = std::env::var("UNSLOTHIFY_TEST_PYTHON").expect("UNSLOTHIFY_TEST_PYTHON names a Python with peft");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/make/load_in_peft.py");
    for name in CASES {
        let case = Case::open(name);
        let mut engine = case.engine(Cpu::new(Some(2)));
        update(&mut engine, &case);
        let folder = tempfile::tempdir().unwrap();
        let at = |file: &str| folder.path().join(file);
        save(&engine, &case, &at("adapter"));
        let texts: Vec<&Vec<u32>> = case.facts.batches[0].iter().map(|text| &text.ids).collect();
        std::fs::write(at("ids.json"), serde_json::to_string(&texts).unwrap()).unwrap();
        let logits = engine.logits(&case.rows(0).batch()).unwrap();
        let bytes: Vec<u8> = logits.iter().flat_map(|value| value.to_le_bytes()).collect();
        std::fs::write(at("logits.f32"), bytes).unwrap();
        let output = Command::new(&python)
            .arg(&script)
            .args([case.folder.path(), &at("adapter"), &at("ids.json"), &at("logits.f32")])
            .output()
            .unwrap();
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        println!("{name}: {said}");
        assert!(output.status.success(), "{name}: {said}\n{complained}");
    }
}
