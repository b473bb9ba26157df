// swiglu: h = silu(gate) * up, a row of gate_up being [gate | up]; backward in place, where dh becomes h again and
// gate_up becomes [dgate | dup], so that the layer needs no third buffer of this width.
//
// One thread per pack of columns; f32 arithmetic, one rounding.
#include "../cuda/common.cuh"

template <class T> __device__ __forceinline__ T swiglu_value(T gate, T up) {
    const float g = wide(gate);
    return narrow<T>(g / (1.0f + expf(-g)) * wide(up));
}

// gate and up become their gradients, dh becomes h.
template <class T> __device__ __forceinline__ void swiglu_gradient(T& dh, T& gate, T& up) {
    const float g = wide(gate), u = wide(up), d = wide(dh);
    const float p = 1.0f / (1.0f + expf(-g));
    dh = narrow<T>(g * p * u);
    gate = narrow<T>(d * u * p * (1.0f + g * (1.0f - p)));
    up = narrow<T>(d * g * p);
}

template <class T> __device__ __forceinline__ void swiglu_rows(const T* gate_up, i64 rows, i64 width, T* h) {
    constexpr int N = Pack<T>::N;
    if (is_packed<T>(width)) {
        const i64 packs = width / N;
        for (i64 i = thread_index(); i < rows * packs; i += thread_count()) {
            const i64 row = i / packs, column = i % packs * N;
            const T* from = gate_up + row * 2 * width + column;
            Pack<T> gate = Pack<T>::load(from), up = Pack<T>::load(from + width);
#pragma unroll
            for (int n = 0; n < N; ++n) gate.value[n] = swiglu_value(gate.value[n], up.value[n]);
            gate.store(h + row * width + column);
        }
    } else {
        for (i64 i = thread_index(); i < rows * width; i += thread_count()) {
            const T* from = gate_up + i / width * 2 * width + i % width;
            h[i] = swiglu_value(from[0], from[width]);
        }
    }
}

template <class T> __device__ __forceinline__ void swiglu_backward_rows(T* dh, T* gate_up, i64 rows, i64 width) {
    constexpr int N = Pack<T>::N;
    if (is_packed<T>(width)) {
        const i64 packs = width / N;
        for (i64 i = thread_index(); i < rows * packs; i += thread_count()) {
            const i64 row = i / packs, column = i % packs * N;
            T* pair = gate_up + row * 2 * width + column;
            T* out = dh + row * width + column;
            Pack<T> gate = Pack<T>::load(pair), up = Pack<T>::load(pair + width), d = Pack<T>::load(out);
#pragma unroll
            for (int n = 0; n < N; ++n) swiglu_gradient(d.value[n], gate.value[n], up.value[n]);
            d.store(out);
            gate.store(pair);
            up.store(pair + width);
        }
    } else {
        for (i64 i = thread_index(); i < rows * width; i += thread_count()) {
            T* pair = gate_up + i / width * 2 * width + i % width;
            swiglu_gradient(dh[i], pair[0], pair[width]);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) swiglu_forward_##name(                                  \
        const T* gate_up, i64 rows, i64 width, T* h) {                                                        \
        swiglu_rows<T>(gate_up, rows, width, h);                                                              \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) swiglu_backward_##name(                                 \
        T* dh, T* gate_up, i64 rows, i64 width) {                                                             \
        swiglu_backward_rows<T>(dh, gate_up, rows, width);                                                    \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
