// golden values as their source prints them
#![allow(clippy::excessive_precision)]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use half::{bf16, f16};
use proptest::prelude::*;
use pulp::Arch;

use super::*;

/// The tensor of the golden vector: `sin(0.37·i)·(1 + i/64)·0.01` in f64, cast.
fn golden() -> Vec<f32> {
    (0..512).map(|i| ((0.37 * f64::from(i)).sin() * f64::from(1 + i / 64) * 0.01) as f32).collect()
}

fn nested(scales: &Nf4Scales) -> (&[u8], &[f32], f32) {
    match scales {
        Nf4Scales::Nested { codes, absmax, offset, .. } => (codes, absmax, *offset),
        Nf4Scales::Plain(_) => panic!("not nested"),
    }
}

/// A small deterministic stream of values around zero.
fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

/// Every set of vector instructions the CPU's operations can run on here, the oldest first and the one they take last.
pub(crate) fn levels() -> Vec<Arch> {
    let mut levels = vec![Arch::Scalar];
    #[cfg(target_arch = "x86_64")]
    levels.extend(pulp::x86::V3::try_new().map(Arch::V3));
    levels.push(Arch::new());
    levels
}

#[test]
fn dynamic_maps_are_bit_equal_to_bitsandbytes() {
    let signed = dynamic::signed_map();
    assert_eq!(signed[127], 0.0);
    assert_eq!(signed[..2], [-0.992_968_74, -0.978_906_3]);
    assert_eq!(signed[253..], [0.978_906_3, 0.992_968_74, 1.0]);
    assert_eq!(signed[126..129], [-5.500_000_4e-7, 0.0, 5.500_000_4e-7]);
    let unsigned = dynamic::unsigned_map();
    assert_eq!(unsigned[..3], [0.0, 3.250_000_3e-7, 7.749_999_9e-7]);
    assert_eq!(unsigned[252..], [0.982_421_9, 0.989_453_1, 0.996_484_4, 1.0]);
    let sum = |map: &[f32; 256]| map.iter().map(|v| u64::from(v.to_bits())).sum::<u64>();
    let mix = |map: &[f32; 256]| (1u32..).zip(map).fold(0u32, |mix, (i, v)| mix ^ v.to_bits().wrapping_mul(i));
    // Computed from `bitsandbytes.functional.create_dynamic_map` 0.50.2: sum and position-weighted xor of all bits.
    assert_eq!((sum(signed), mix(signed)), (535_306_620_548, 0x5599_ad34));
    assert_eq!((sum(unsigned), mix(unsigned)), (262_570_225_560, 0xfba0_7c6c));
}

#[test]
fn nearest_takes_the_lower_code_exactly_halfway() {
    for map in [dynamic::signed_map(), dynamic::unsigned_map()] {
        for i in 0..255 {
            let middle = (map[i] + map[i + 1]) * 0.5;
            assert_eq!(usize::from(dynamic::nearest(map, map[i])), i);
            assert_eq!(usize::from(dynamic::nearest(map, middle)), i);
            assert_eq!(usize::from(dynamic::nearest(map, middle.next_up())), i + 1);
        }
        assert_eq!(dynamic::nearest(map, 5.0), 255);
        assert_eq!(dynamic::nearest(map, -5.0), 0);
        assert_eq!(dynamic::nearest(map, f32::NAN), 0);
    }
}

#[test]
fn thresholds_are_the_midpoints_of_the_table() {
    for (threshold, pair) in nf4::THRESHOLDS.iter().zip(nf4::TABLE.windows(2)) {
        assert_eq!(*threshold, (pair[0] + pair[1]) / 2.0);
    }
}

#[test]
fn nf4_matches_the_golden_vector_of_bitsandbytes() {
    let matrix = StoredMatrix::new(8, 64, StoredValues::F32(golden())).unwrap();
    let (packed, absmax) = nf4::quantize(&golden());
    assert_eq!(
        absmax,
        [
            0.00997526291757822,
            0.01998143270611763,
            0.02999623864889145,
            0.03999990224838257,
            0.04999673739075661,
            0.05995511636137962,
            0.06984786689281464,
            0.07977652549743652
        ]
    );
    assert_eq!(packed[..16], [123, 239, 255, 237, 149, 33, 0, 1, 55, 190, 255, 254, 217, 82, 16, 0]);
    assert_eq!(packed[248..], [255, 254, 183, 49, 0, 1, 37, 173]);
    assert_eq!(packed.iter().map(|&byte| u32::from(byte)).sum::<u32>(), 32200);

    let quantised = matrix.quantize_nf4();
    let StoredValues::Nf4(values) = &quantised.values else { panic!("not NF4") };
    let (codes, nested_absmax, offset) = nested(&values.absmax);
    assert_eq!(codes, [0, 20, 40, 61, 194, 214, 234, 254]);
    assert_eq!(nested_absmax, [0.0349658727645874]);
    assert_eq!(offset, 0.04494113475084305);
    let scales: Vec<f32> = (0..8).map(|block| values.absmax.get(block)).collect();
    assert_eq!(
        scales,
        [
            0.010221116244792938,
            0.020055266097187996, // 0.020055267959833145 where torch runs without fused multiply-add
            0.029889419674873352,
            0.040215279906988144,
            0.05015869811177254,
            0.059992849826812744,
            0.06982700526714325,
            0.07966115325689316
        ]
    );
    let back = quantised.dequantize();
    assert_eq!(
        back[..6],
        [
            0.0,
            0.003453871002420783,
            0.00738942576572299,
            0.010221116244792938,
            0.010221116244792938,
            0.010221116244792938
        ]
    );
    let worst = back.iter().zip(golden()).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
    assert!((worst - 0.008_584_8).abs() < 1e-7, "{worst}");
    assert_eq!((quantised.storage(), quantised.bytes()), ("nf4", 256 + 8 + (1 + 256 + 1) * 4));
}

#[test]
fn nf4_of_zeros_is_zeros_and_an_odd_tail_is_padded() {
    let (codes, absmax) = nf4::quantize(&[0.0; 67]);
    assert_eq!(codes, vec![0x77; 34]);
    assert_eq!(absmax, [0.0, 1e-38]);
    let values = Nf4Values { codes, absmax: Nf4Scales::Plain(absmax), dtype: FloatType::F32 };
    let mut out = vec![1.0; 67];
    nf4::dequantize(&values, 0..67, &mut out);
    assert!(out.iter().all(|&value| value == 0.0));
}

#[test]
fn dequantised_nf4_is_rounded_to_the_dtype_it_came_from() {
    let values = noise(512, 7);
    let as_f32 = StoredMatrix::new(8, 64, StoredValues::F32(values.clone())).unwrap().quantize_nf4().dequantize();
    let mut as_bf16 = StoredMatrix::new(8, 64, StoredValues::F32(values)).unwrap().quantize_nf4();
    let mut as_f16 = as_bf16.clone();
    for (matrix, dtype) in [(&mut as_bf16, FloatType::Bf16), (&mut as_f16, FloatType::F16)] {
        let StoredValues::Nf4(values) = &mut matrix.values else { panic!("not NF4") };
        values.dtype = dtype;
    }
    let bf16: Vec<f32> = as_f32.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    let f16: Vec<f32> = as_f32.iter().map(|&v| f16::from_f32(v).to_f32()).collect();
    assert_eq!(as_bf16.dequantize(), bf16);
    assert_eq!(as_f16.dequantize(), f16);
    assert_ne!(bf16, as_f32);
}

#[test]
fn what_is_in_blocks_already_is_not_quantised_twice() {
    let once = StoredMatrix::new(4, 64, StoredValues::F32(noise(256, 3))).unwrap().quantize_nf4();
    assert_eq!(once.quantize_nf4().dequantize(), once.dequantize());
    let bytes = vec![1u8; 4 * 2 * 18];
    let q4 = StoredMatrix::new(4, 64, StoredValues::Ggml(GgmlValues { kind: GgmlKind::Q4_0, bytes })).unwrap();
    assert_eq!(q4.quantize_nf4().storage(), "Q4_0");
}

#[test]
fn ggml_blocks_by_hand() {
    let scale = f16::from_f32(0.5).to_le_bytes();
    let least = f16::from_f32(-3.0).to_le_bytes();
    let mut q8 = scale.to_vec();
    q8.extend((0..32).map(|i| (i as i8 - 16) as u8));
    let mut q4 = scale.to_vec();
    q4.extend((0..16).map(|i: u8| i | (15 - i) << 4));
    let mut q4_1 = scale.to_vec();
    q4_1.extend(least);
    q4_1.extend((0..16).map(|i: u8| i | (15 - i) << 4));
    let read =
        |kind, bytes| StoredMatrix::new(1, 32, StoredValues::Ggml(GgmlValues { kind, bytes })).unwrap().dequantize();
    let wanted = |value: fn(f32, f32) -> f32| -> Vec<f32> {
        (0..32).map(|i| value(i as f32, if i < 16 { i as f32 } else { 31.0 - i as f32 })).collect()
    };
    assert_eq!(read(GgmlKind::Q8_0, q8), wanted(|i, _| (i - 16.0) * 0.5));
    assert_eq!(read(GgmlKind::Q4_0, q4), wanted(|_, q| (q - 8.0) * 0.5));
    assert_eq!(read(GgmlKind::Q4_1, q4_1), wanted(|_, q| q * 0.5 - 3.0));
}

/// The oldest level runs everywhere and the tests above check it or the newest: the others must give the same bits.
#[test]
fn every_level_of_vector_instructions_gives_the_same_bits() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let values = noise(5 * 64 + 7, 5);
    let (codes, absmax) = nf4::quantize_on(Arch::Scalar, &values);
    let stored = |dtype| Nf4Values { codes: codes.clone(), absmax: nf4::quantize_scales(&absmax), dtype };
    let blocks: Vec<u8> = noise(3 * 34 * 18 * 20, 6).iter().map(|v| (v * 127.0) as i8 as u8).collect();
    let back = |level, dtype| {
        let mut out = vec![0.0; values.len() - 5];
        nf4::dequantize_on(level, &stored(dtype), 3..values.len() - 2, &mut out);
        bits(&out)
    };
    let read = |level, kind: GgmlKind| {
        let mut out = vec![0.0; blocks.len() / kind.block_bytes() * 32];
        ggml::dequantize_on(level, kind, &blocks, &mut out);
        bits(&out)
    };
    for level in levels() {
        let again = nf4::quantize_on(level, &values);
        assert_eq!((again.0, bits(&again.1)), (codes.clone(), bits(&absmax)), "{level:?}");
        for dtype in [FloatType::F32, FloatType::F16, FloatType::Bf16] {
            assert_eq!(back(level, dtype), back(Arch::Scalar, dtype), "{level:?} {dtype:?}");
        }
        for kind in [GgmlKind::Q8_0, GgmlKind::Q4_0, GgmlKind::Q4_1] {
            assert_eq!(read(level, kind), read(Arch::Scalar, kind), "{level:?} {}", kind.name());
        }
    }
}

#[test]
fn lengths_that_do_not_fit_the_shape_are_errors() {
    let short = StoredMatrix::new(2, 64, StoredValues::F32(vec![0.0; 127])).unwrap_err();
    assert_eq!(short.to_string(), "f32 values: got 127, a 2 x 64 matrix has 128");
    let huge = StoredMatrix::new(usize::MAX, 2, StoredValues::F32(vec![])).unwrap_err();
    assert_eq!(huge, Error::TooLarge { rows: usize::MAX, cols: 2 });
    let ggml = GgmlValues { kind: GgmlKind::Q8_0, bytes: vec![0; 34] };
    let uneven = StoredMatrix::new(1, 33, StoredValues::Ggml(ggml)).unwrap_err();
    assert_eq!(uneven.to_string(), "Q8_0 stores rows in blocks of 32 elements; rows of 33 do not fit");
    let scales = Nf4Scales::Nested { codes: vec![0; 2], absmax: vec![], map: vec![0.0; 256], offset: 0.0 };
    let nf4 = Nf4Values { codes: vec![0; 64], absmax: scales, dtype: FloatType::F32 };
    assert!(StoredMatrix::new(2, 64, StoredValues::Nf4(nf4)).is_err());
}

proptest! {
    #[test]
    fn any_rows_equal_the_same_rows_of_the_whole(
        rows in 1usize..9, cols in 1usize..150, first in 0usize..9, last in 0usize..9, dtype in 0..3, seed: u32,
    ) {
        let (first, last) = (first.min(last).min(rows), first.max(last).min(rows));
        let values = noise(rows * cols, seed);
        let values = match dtype {
            0 => StoredValues::F32(values),
            1 => StoredValues::F16(values.into_iter().map(f16::from_f32).collect()),
            _ => StoredValues::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        };
        let plain = StoredMatrix::new(rows, cols, values).unwrap();
        let quantised = plain.quantize_nf4();
        let checked = StoredMatrix::new(rows, cols, quantised.values.clone());
        prop_assert!(checked.is_ok());
        for matrix in [plain, quantised] {
            let mut some = vec![f32::NAN; (last - first) * cols];
            matrix.dequantize_rows(first..last, &mut some);
            prop_assert_eq!(&some, &matrix.dequantize()[first * cols..last * cols]);
        }
    }

    #[test]
    fn the_code_of_nf4_is_the_nearest_value(values in prop::collection::vec(-3f32..3.0, 64)) {
        let (codes, absmax) = nf4::quantize(&values);
        for (i, value) in values.iter().enumerate() {
            let code = if i % 2 == 0 { codes[i / 2] >> 4 } else { codes[i / 2] & 15 };
            let error = (nf4::TABLE[usize::from(code)] * absmax[0] - value).abs();
            let best = nf4::TABLE.iter().map(|v| (v * absmax[0] - value).abs()).fold(f32::MAX, f32::min);
            prop_assert!(error <= best + 1e-6 * absmax[0]);
        }
    }
}
