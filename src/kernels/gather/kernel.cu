// gather_rows: y[t] = x[rows[t]]; scatter_rows: y[rows[t]] = x[t], rows distinct.
//
// One thread per pack of columns, or per column where the width is no whole number of packs.
#include "../cuda/common.cuh"

template <class T, bool IS_GATHER>
__device__ __forceinline__ void gather_move(const T* x, const u32* rows, i64 count, i64 width, T* y) {
    constexpr int N = Pack<T>::N;
    const bool packed = is_packed<T>(width);
    const i64 step = packed ? N : 1, per_row = width / step;
    for (i64 i = thread_index(); i < count * per_row; i += thread_count()) {
        const i64 t = i / per_row, column = i % per_row * step;
        const i64 there = (i64)rows[t] * width + column, here = t * width + column;
        const T* from = x + (IS_GATHER ? there : here);
        T* to = y + (IS_GATHER ? here : there);
        if (packed) {
            Pack<T>::load(from).store(to);
        } else {
            *to = *from;
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) gather_rows_##name(                                     \
        const T* x, const u32* rows, i64 count, i64 width, T* y) {                                            \
        gather_move<T, true>(x, rows, count, width, y);                                                       \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) scatter_rows_##name(                                    \
        const T* x, const u32* rows, i64 count, i64 width, T* y) {                                            \
        gather_move<T, false>(x, rows, count, width, y);                                                      \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
