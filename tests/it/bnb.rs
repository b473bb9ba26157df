//! Folders that bitsandbytes quantised: what the devices hold are its values to the bit, and adapters train on them.

use std::path::{Path, PathBuf};

use half::bf16;
use safetensors::SafeTensors;
use unslothify::engine::{Batch, Engine, LoraConfig, MODULES, Mode};
use unslothify::kernels::cuda::Dtype;
use unslothify::kernels::{Backend, Cpu, Cuda, Reference};
use unslothify::optim::{AdamW8bit, Settings, clip_factor};
use unslothify::weights::Checkpoint;

/// Nested scales, plain scales, and both beside matrices in bf16 in one folder.
const FOLDERS: [&str; 3] = ["bnb_double", "bnb_plain", "bnb_mixed"];

fn fixture(name: &str) -> PathBuf {
    let repository = std::env::var_os("UNSLOTHIFY_TEST_ROOT").map(PathBuf::from);
    repository.unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into()).join("tests/fixtures/weights").join(name)
}

/// The matrices that bitsandbytes multiplies with, by name.
fn expected(folder: &str) -> Vec<(String, Vec<f32>)> {
    let bytes = std::fs::read(fixture(&format!("{folder}.expected.safetensors"))).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let matrices = file.tensors().into_iter().filter(|(_, view)| view.shape().len() == 2);
    let wide = |b: &[u8; 2]| bf16::from_le_bytes(*b).to_f32();
    matrices.map(|(name, view)| (name, view.data().as_chunks().0.iter().map(wide).collect())).collect()
}

/// GPU 0, or none unless `UNSLOTHIFY_TEST_GPU=1` asks for it; then it must be there.
fn gpu(dtype: Dtype) -> Option<Cuda> {
    if std::env::var("UNSLOTHIFY_TEST_GPU").as_deref() != Ok("1") {
        println!("not run: UNSLOTHIFY_TEST_GPU=1 runs it, on a machine with a GPU");
        return None;
    }
    Some(Cuda::new(0, Some(dtype)).unwrap_or_else(|error| panic!("{error}")))
}

/// Every matrix of every folder as the device has it: by its rows, and by its product with the unit matrix.
fn holds_the_values_of_bitsandbytes<B: Backend>(backend: &B) {
    for folder in FOLDERS {
        let checkpoint = Checkpoint::open(&fixture(folder)).unwrap();
        let (mut quantised, mut whole) = (0, 0);
        for (name, wanted) in expected(folder) {
            let matrix = checkpoint.matrix(&name).unwrap();
            let rows = matrix.rows;
            if matrix.storage() == "nf4" {
                quantised += 1
            } else {
                whole += 1
            }
            let weight = backend.weight(vec![matrix]).unwrap();
            let (mut by_row, mut unit, mut by_product) = (backend.act(), backend.act(), backend.act());
            let ids: Vec<u32> = (0..rows as u32).collect();
            backend.embed(&weight, &backend.index(&ids).unwrap(), &mut by_row).unwrap();
            let mut ones = vec![0.0; rows * rows];
            ones.iter_mut().step_by(rows + 1).for_each(|value| *value = 1.0);
            backend.write_act(&mut unit, rows, rows, &ones).unwrap();
            backend.linear_backward(&unit, &weight, None, &mut by_product).unwrap();
            for got in [by_row, by_product] {
                let got = backend.read_act(&got).unwrap();
                assert_eq!(got.len(), wanted.len(), "{folder} {name}");
                let differs = got.iter().zip(&wanted).position(|(got, wanted)| got != wanted);
                assert_eq!(differs, None, "{folder} {name}: {} values", wanted.len());
            }
        }
        let counts = if folder == "bnb_mixed" { (11, 5) } else { (7, 2) };
        assert_eq!((quantised, whole), counts, "{folder}");
    }
}

/// The losses of three steps on two texts.
fn train<B: Backend>(backend: B, folder: &Path) -> Vec<f64> {
    let mut engine = Engine::load(backend, &Checkpoint::open(folder).unwrap(), &Default::default()).unwrap();
    let target_modules = MODULES.iter().map(ToString::to_string).collect();
    let lora =
        LoraConfig { r: 4, lora_alpha: 10.0, target_modules, layers_to_transform: None, use_rslora: false, seed: 5 };
    engine.add_lora(&lora).unwrap();
    let flat = engine.flat().unwrap();
    let len = engine.backend().full_len(flat.params);
    let mut optimizer = AdamW8bit::new(engine.backend(), Settings::default(), flat.segments, len).unwrap();
    let ids: Vec<u32> = (0..27).map(|i| (i * i + 3) % 32).collect();
    let borders = [0, 20, 27];
    let targets: Vec<i32> = (0..ids.len()).map(|i| if i == 19 || i == 26 { -100 } else { ids[i + 1] as i32 }).collect();
    let batch = Batch { ids: &ids, cu_seqlens: &borders, targets: &targets };
    let mut losses = Vec::new();
    for _ in 0..3 {
        losses.push(engine.forward(&batch, Mode::Train, 25.0).unwrap());
        engine.backward(1.0).unwrap();
        let flat = engine.flat_mut().unwrap();
        let norm = flat.backend.sum_squares(flat.gradients).unwrap().sqrt();
        let factor = clip_factor(norm, 1.0).unwrap();
        optimizer.step(flat.backend, flat.params, flat.gradients, 1e-2, factor).unwrap();
        engine.zero_grad().unwrap();
    }
    losses.push(engine.forward(&batch, Mode::Evaluate, 25.0).unwrap());
    losses
}

/// The folder's values without quantisation: what bitsandbytes multiplies with, as an ordinary checkpoint in bf16.
fn dequantised(folder: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(fixture(folder).join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config.as_object_mut().unwrap().remove("quantization_config").unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    std::fs::copy(fixture(&format!("{folder}.expected.safetensors")), dir.path().join("model.safetensors")).unwrap();
    dir
}

fn apart(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a / b - 1.0).abs()).fold(0.0, f64::max)
}

#[test]
fn the_cpu_and_the_reference_hold_the_values_of_bitsandbytes() {
    holds_the_values_of_bitsandbytes(&Cpu::new(Some(2)));
    holds_the_values_of_bitsandbytes(&Reference::new());
}

#[test]
fn training_on_a_folder_of_bitsandbytes_is_training_on_its_values() {
    for folder in FOLDERS {
        let losses = train(Cpu::new(Some(2)), &fixture(folder));
        assert!(losses[3] < losses[0], "{folder}: {losses:?}");
        let plain = train(Cpu::new(Some(2)), dequantised(folder).path());
        assert!(apart(&losses, &plain) < 1e-6, "{folder}: {losses:?} and {plain:?}");
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_holds_the_values_of_bitsandbytes() {
    // f16 cannot: the values are bf16's
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let Some(gpu) = gpu(dtype) else { return };
        holds_the_values_of_bitsandbytes(&gpu);
    }
}

#[test]
#[ignore = "not run: needs a GPU, `.ci/run gpu`"]
fn the_gpu_trains_on_a_folder_of_bitsandbytes_as_the_cpu_does() {
    for folder in FOLDERS {
        let wanted = train(Cpu::new(Some(2)), &fixture(folder));
        for (dtype, allowed) in [(Dtype::F32, 1e-4), (Dtype::Bf16, 2e-3)] {
            let Some(gpu) = gpu(dtype) else { return };
            let losses = train(gpu, &fixture(folder));
            let off = apart(&losses, &wanted);
            println!("{folder} in {}: {off:.1e} from the CPU", dtype.name());
            assert!(off <= allowed, "{folder}: {losses:?} and {wanted:?}");
        }
    }
}
