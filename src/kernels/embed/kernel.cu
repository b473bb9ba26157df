// embed: x[t] = table[ids[t]] for the ids whose rows lie in one part of the table, from `first` on.
//
// One thread per value. embed_rows reads a table of any dtype, embed_nf4 dequantises as linear/kernel.cu does.
#include "../cuda/nf4.cuh"

template <class T>
__device__ __forceinline__ void embed_dense(
    const void* table, i64 kind, i64 first, i64 part_rows, i64 width, const u32* ids, i64 count, T* x) {
    for (i64 i = thread_index(); i < count * width; i += thread_count()) {
        const i64 row = (i64)ids[i / width] - first;
        if (row >= 0 && row < part_rows) x[i] = narrow<T>(load_kind(table, kind, row * width + i % width));
    }
}

template <class T>
__device__ __forceinline__ void embed_quantized(
    const u8* codes, Nf4Scales scales, i64 rounding, i64 first, i64 part_rows, i64 width, const u32* ids, i64 count,
    T* x) {
    for (i64 i = thread_index(); i < count * width; i += thread_count()) {
        const i64 row = (i64)ids[i / width] - first;
        if (row < 0 || row >= part_rows) continue;
        const i64 element = row * width + i % width;
        const u32 pair = codes[element >> 1];
        const float value = nf4_table[element & 1 ? pair & 15u : pair >> 4];
        x[i] = narrow<T>(round_kind(__fmul_rn(value, scales.of(element >> 6)), rounding));
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) embed_rows_##name(                                      \
        const void* table, i64 kind, i64 first, i64 part_rows, i64 width, const u32* ids, i64 count, T* x) {  \
        embed_dense<T>(table, kind, first, part_rows, width, ids, count, x);                                  \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) embed_nf4_##name(                                       \
        const u8* codes, const u8* scale_codes, const float* absmax, const float* map, float offset,          \
        i64 rounding, i64 first, i64 part_rows, i64 width, const u32* ids, i64 count, T* x) {                 \
        const Nf4Scales scales = {scale_codes, absmax, map, offset};                                          \
        embed_quantized<T>(codes, scales, rounding, first, part_rows, width, ids, count, x);                  \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
