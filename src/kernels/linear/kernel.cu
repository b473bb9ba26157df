// linear: what a frozen matrix needs before cuBLASLt multiplies with it.
//
// linear_dequantize: NF4 codes (two per byte, the first in the high nibble, one scale per 64 elements) to the compute
// dtype. The scale is read as it is stored: map[code] * absmax[block / 256] rounded, then + offset rounded, no fused
// multiply-add; table[nibble] * scale is rounded to the dtype the matrix had, then to the compute dtype: bit for bit what
// quant::nf4 computes. One thread per 8 elements: 4 bytes in, 16 (or 32) out, both coalesced; the table lies in 16
// banks of shared memory, so no two nibbles collide.
// linear_cast: a buffer of any dtype to the compute dtype (adapters' f32 masters, 16-bit weights under f32).
#include "../cuda/nf4.cuh"

template <class T>
__device__ __forceinline__ void linear_dequantize_nf4(
    const u8* codes, Nf4Scales scales, i64 rounding, i64 elements, T* out) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = nf4_table[threadIdx.x];
    __syncthreads();
    const i64 groups = elements / 8;
    const bool is_aligned = ((i64)out & 15) == 0 && ((i64)codes & 3) == 0;
    if (is_aligned) {
        for (i64 i = thread_index(); i < groups; i += thread_count()) {
            const u32 word = reinterpret_cast<const u32*>(codes)[i];
            const float scale = scales.of(i >> 3);
            alignas(16) T values[8];
#pragma unroll
            for (int byte = 0; byte < 4; ++byte) {
                const u32 pair = word >> (8 * byte) & 255u;
                values[2 * byte] = narrow<T>(round_kind(__fmul_rn(table[pair >> 4], scale), rounding));
                values[2 * byte + 1] = narrow<T>(round_kind(__fmul_rn(table[pair & 15u], scale), rounding));
            }
#pragma unroll
            for (int pack = 0; pack < 8 / Pack<T>::N; ++pack) {
                reinterpret_cast<uint4*>(out + 8 * i)[pack] = reinterpret_cast<const uint4*>(values)[pack];
            }
        }
    }
    for (i64 i = (is_aligned ? groups * 8 : 0) + thread_index(); i < elements; i += thread_count()) {
        const u32 pair = codes[i >> 1];
        const float value = table[i & 1 ? pair & 15u : pair >> 4];
        out[i] = narrow<T>(round_kind(__fmul_rn(value, scales.of(i >> 6)), rounding));
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) linear_dequantize_##name(                               \
        const u8* codes, const u8* scale_codes, const float* absmax, const float* map, float offset,          \
        i64 rounding, i64 elements, T* out) {                                                                 \
        const Nf4Scales scales = {scale_codes, absmax, map, offset};                                          \
        linear_dequantize_nf4<T>(codes, scales, rounding, elements, out);                                     \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) linear_cast_##name(                                     \
        const void* from, i64 kind, i64 len, T* out) {                                                        \
        for (i64 i = thread_index(); i < len; i += thread_count()) out[i] = narrow<T>(load_kind(from, kind, i)); \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
