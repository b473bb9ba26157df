//! Weights in blocks of 4 and 8 bits, read from a file, have exactly the bits their format gives.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use unslothify::quant::{GgmlKind, StoredValues};
use unslothify::weights::Checkpoint;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/weights").join(name)
}

/// Fails on the first value whose bits differ.
fn assert_same_bits(got: &[f32], wanted: &[f32], what: &str) {
    assert_eq!(got.len(), wanted.len(), "{what}");
    for (at, (got, wanted)) in got.iter().zip(wanted).enumerate() {
        assert_eq!(got.to_bits(), wanted.to_bits(), "{what}, value {at}: {got:e} and {wanted:e}");
    }
}

/// bitsandbytes' checkpoint again, its matrices said to have been of `dtype`; returns the new file's bytes.
fn as_if_from(dtype: &str, folder: &Path) -> Vec<u8> {
    std::fs::copy(fixture("bnb_double/config.json"), folder.join("config.json")).unwrap();
    let bytes = std::fs::read(fixture("bnb_double/model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.tensors().into_iter().map(|(name, view)| {
        let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
        if name.ends_with(".quant_state.bitsandbytes__nf4") {
            let state = String::from_utf8(data).unwrap();
            assert!(state.contains("\"bfloat16\""), "{state}");
            data = state.replace("bfloat16", dtype).into_bytes();
            shape = vec![data.len()];
        }
        (name, view.dtype(), shape, data)
    });
    let tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = tensors.collect();
    let views = tensors.iter().map(|(name, dtype, shape, data)| {
        let view = TensorView::new(*dtype, shape.clone(), data).unwrap();
        (name.clone(), view)
    });
    let written = safetensors::serialize(views, None).unwrap();
    std::fs::write(folder.join("model.safetensors"), &written).unwrap();
    written
}

#[test]
fn nf4_in_a_file_reads_to_the_bits_of_its_formula_in_every_dtype() {
    type Rounding = (&'static str, fn(f32) -> f32);
    let roundings: [Rounding; 3] = [
        ("float32", |value| value),
        ("float16", |value| f16::from_f32(value).to_f32()),
        ("bfloat16", |value| bf16::from_f32(value).to_f32()),
    ];
    for (dtype, rounded) in roundings {
        let folder = tempfile::tempdir().unwrap();
        let bytes = as_if_from(dtype, folder.path());
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let checkpoint = Checkpoint::open(folder.path()).unwrap();
        let mut compared = 0;
        for name in checkpoint.names().into_iter().filter(|name| name.contains("_proj")) {
            let data = |part: &str| file.tensor(&format!("{name}{part}")).unwrap().data().to_vec();
            let floats = |part: &str| -> Vec<f32> {
                data(part).chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
            };
            let (codes, scales) = (data(""), data(".absmax"));
            let (nested, map, table) = (floats(".nested_absmax"), floats(".nested_quant_map"), floats(".quant_map"));
            let state: serde_json::Value = serde_json::from_slice(&data(".quant_state.bitsandbytes__nf4")).unwrap();
            let offset = state["nested_offset"].as_f64().unwrap() as f32;
            // The first of two elements lies in the high nibble; product and sum are rounded apart.
            let value = |element: usize| {
                let code = codes[element / 2] >> (4 * (1 - element % 2)) & 15;
                let block = element / 64;
                let product = map[usize::from(scales[block])] * nested[block / 256];
                rounded(table[usize::from(code)] * (product + offset))
            };
            let wanted: Vec<f32> = (0..2 * codes.len()).map(value).collect();
            let matrix = checkpoint.matrix(&name).unwrap();
            let StoredValues::Nf4(stored) = &matrix.values else { panic!("{name} is not NF4") };
            assert_eq!(stored.codes, codes, "{name}");
            assert_same_bits(&matrix.dequantize(), &wanted, &format!("{dtype} {name}"));
            compared += wanted.len();
        }
        assert_eq!(compared, 64 * 64 * 2 + 32 * 64 * 2 + 3 * 96 * 64);
    }
}

/// One row of 64 elements: two blocks, one with a scale below the normal numbers of f16 and one with its greatest, the
/// codes of every kind in turn; and the values ggml's formulas give.
fn extreme_row(kind: GgmlKind) -> (Vec<u8>, Vec<f32>) {
    let (mut bytes, mut values) = (Vec::new(), Vec::new());
    for (scale, least, first) in [(0x8001_u16, 0x0203_u16, 0_u8), (0xfbff, 0xfbff, 0x70)] {
        let (d, m) = (f16::from_bits(scale).to_f32(), f16::from_bits(least).to_f32());
        bytes.extend(scale.to_le_bytes());
        if matches!(kind, GgmlKind::Q4_1) {
            bytes.extend(least.to_le_bytes());
        }
        let codes: Vec<u8> = match kind {
            GgmlKind::Q8_0 => (0..32).map(|i: u8| first.wrapping_add(8 * i)).collect(),
            _ => (0..16).map(|i: u8| i | (15 - i) << 4).collect(),
        };
        let nibbles = codes.iter().map(|code| code & 15).chain(codes.iter().map(|code| code >> 4)).map(f32::from);
        match kind {
            GgmlKind::Q8_0 => values.extend(codes.iter().map(|&code| f32::from(code as i8) * d)),
            GgmlKind::Q4_0 => values.extend(nibbles.map(|q| (q - 8.0) * d)),
            GgmlKind::Q4_1 => values.extend(nibbles.map(|q| q * d + m)),
        }
        bytes.extend(codes);
    }
    (bytes, values)
}

#[test]
fn ggml_blocks_in_a_file_read_to_the_bits_of_their_formula_at_the_ends_of_their_range() {
    for (name, wanted_kind) in [
        ("model.embed_tokens.weight", GgmlKind::Q8_0),
        ("model.layers.0.self_attn.k_proj.weight", GgmlKind::Q4_0),
        ("model.layers.0.self_attn.v_proj.weight", GgmlKind::Q4_1),
    ] {
        let mut file = std::fs::read(fixture("tiny.gguf")).unwrap();
        let before = Checkpoint::open(&fixture("tiny.gguf")).unwrap().matrix(name).unwrap();
        let StoredValues::Ggml(stored) = &before.values else { panic!("{name} is not in blocks") };
        assert_eq!(stored.kind, wanted_kind);
        let (row, values) = extreme_row(stored.kind);
        assert_eq!(values.len(), before.cols);
        // Rows are found by their bytes: those of q and k lie in another order in the file.
        for old in stored.bytes.chunks_exact(row.len()) {
            let at = file.windows(row.len()).position(|window| window == old).unwrap();
            file[at..at + row.len()].copy_from_slice(&row);
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("extreme.gguf");
        std::fs::write(&path, file).unwrap();
        let matrix = Checkpoint::open(&path).unwrap().matrix(name).unwrap();
        for got in matrix.dequantize().chunks_exact(values.len()) {
            assert_same_bits(got, &values, name);
        }
    }
}
