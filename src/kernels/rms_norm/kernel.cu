// rms_norm: y = x * rstd * weight with rstd = 1 / sqrt(mean(x^2) + eps); backward: dx += its gradient at dy.
//
// One block of 256 threads per row. x, y, dy, dx in the compute dtype, weight and rstd in f32, sums in f32. The second
// pass over the row reads it from the cache. The residual branch's gradient is in dx already: adding here saves a pass.
#include "../cuda/common.cuh"

template <class T>
__device__ __forceinline__ void rms_norm_row(
    const T* x, const float* weight, i64 width, float eps, T* y, float* rstd_out) {
    const i64 row = blockIdx.x;
    x += row * width;
    y += row * width;
    constexpr int N = Pack<T>::N;
    float squares = 0.0f;
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> pack = Pack<T>::load(x + i);
#pragma unroll
            for (int n = 0; n < N; ++n) squares += wide(pack.value[n]) * wide(pack.value[n]);
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) squares += wide(x[i]) * wide(x[i]);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)width + eps);
    if (threadIdx.x == 0) rstd_out[row] = rstd;
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> pack = Pack<T>::load(x + i);
#pragma unroll
            for (int n = 0; n < N; ++n) pack.value[n] = narrow<T>(wide(pack.value[n]) * rstd * weight[i + n]);
            pack.store(y + i);
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) y[i] = narrow<T>(wide(x[i]) * rstd * weight[i]);
    }
}

template <class T>
__device__ __forceinline__ void rms_norm_backward_row(
    const T* dy, const T* x, const float* weight, const float* rstd_in, i64 width, T* dx) {
    const i64 row = blockIdx.x;
    dy += row * width;
    x += row * width;
    dx += row * width;
    constexpr int N = Pack<T>::N;
    float dot = 0.0f;
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> a = Pack<T>::load(x + i), b = Pack<T>::load(dy + i);
#pragma unroll
            for (int n = 0; n < N; ++n) dot += wide(a.value[n]) * wide(b.value[n]) * weight[i + n];
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) dot += wide(x[i]) * wide(dy[i]) * weight[i];
    }
    const float rstd = rstd_in[row];
    const float along = rstd * rstd * rstd * block_sum(dot) / (float)width;
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> a = Pack<T>::load(x + i), b = Pack<T>::load(dy + i), c = Pack<T>::load(dx + i);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float added = rstd * (wide(b.value[n]) * weight[i + n]) - wide(a.value[n]) * along;
                c.value[n] = narrow<T>(wide(c.value[n]) + added);
            }
            c.store(dx + i);
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
            const float added = rstd * (wide(dy[i]) * weight[i]) - wide(x[i]) * along;
            dx[i] = narrow<T>(wide(dx[i]) + added);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_forward_##name(                                \
        const T* x, const float* weight, i64 width, float eps, T* y, float* rstd) {                           \
        rms_norm_row<T>(x, weight, width, eps, y, rstd);                                                      \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256) rms_norm_backward_add_##name(                           \
        const T* dy, const T* x, const float* weight, const float* rstd, i64 width, T* dx) {                  \
        rms_norm_backward_row<T>(dy, x, weight, rstd, width, dx);                                             \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
