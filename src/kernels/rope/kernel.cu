// rope: rotates the half-split pairs of the q and k columns of qkv in place by sign * position * frequency.
//
// rope_table_f32 fills (positions, 2, half) cosines and sines, angles in f64 and rounded once, one thread per angle.
// rope_forward: one thread per pack of pairs of one head of one row; v's columns are not touched.
#include "../cuda/common.cuh"

extern "C" __global__ void rope_table_f32(const float* inverse_frequencies, i64 half, i64 positions, float* table) {
    for (i64 i = thread_index(); i < half * positions; i += thread_count()) {
        const i64 position = i / half, j = i % half;
        double sine, cosine;
        sincos((double)position * (double)inverse_frequencies[j], &sine, &cosine);
        table[position * 2 * half + j] = (float)cosine;
        table[position * 2 * half + half + j] = (float)sine;
    }
}

template <class T>
__device__ __forceinline__ void rope_rotate(
    T* qkv, const int* positions, const float* table, i64 rows, i64 heads, i64 half, i64 width, float sign) {
    constexpr int N = Pack<T>::N;
    // half a multiple of a pack makes every head, row and half start on 16 bytes: width is a multiple of 2 * half
    const bool packed = is_packed<T>(half);
    const i64 step = packed ? N : 1;
    const i64 per_head = half / step, total = rows * heads * per_head;
    for (i64 i = thread_index(); i < total; i += thread_count()) {
        const i64 j = i % per_head * step, head = i / per_head % heads, row = i / per_head / heads;
        const float* cosines = table + (i64)positions[row] * 2 * half + j;
        const float* sines = cosines + half;
        T* first = qkv + row * width + head * 2 * half + j;
        T* second = first + half;
        if (packed) {
            Pack<T> a = Pack<T>::load(first), b = Pack<T>::load(second);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float p = wide(a.value[n]), q = wide(b.value[n]), sine = sign * sines[n];
                a.value[n] = narrow<T>(p * cosines[n] - q * sine);
                b.value[n] = narrow<T>(q * cosines[n] + p * sine);
            }
            a.store(first);
            b.store(second);
        } else {
            const float p = wide(*first), q = wide(*second), sine = sign * *sines;
            *first = narrow<T>(p * *cosines - q * sine);
            *second = narrow<T>(q * *cosines + p * sine);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) rope_forward_##name(                                    \
        T* qkv, const int* positions, const float* table, i64 rows, i64 heads, i64 half, i64 width, float sign) { \
        rope_rotate<T>(qkv, positions, table, rows, heads, half, width, sign);                                \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
