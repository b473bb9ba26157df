// cross_entropy: loss[t] = lse(z[t]) - z[t, target], and z[t] becomes weight * (softmax(z[t]) - onehot) in place;
// log_probs: z[t, target] - lse(z[t]), z untouched.
//
// One block of 512 threads per row of V logits: one pass for maximum and sum together (each thread rescales its own sum
// when its maximum grows), one to write, which finds the row in the second cache. Losses in f64: the host adds them in
// order of rows.
#include "../cuda/common.cuh"

struct MaximumAndSum {
    float maximum, sum;
    __device__ __forceinline__ void see(float z) {
        if (z > maximum) {
            sum *= expf(maximum - z);
            maximum = z;
        }
        // a NaN fails the comparison above and must still reach the sum
        sum += expf(z - maximum);
    }
};

template <class T> __device__ __forceinline__ MaximumAndSum cross_entropy_statistics(const T* z, i64 width) {
    constexpr int N = Pack<T>::N;
    MaximumAndSum own = {-INFINITY_F, 0.0f};
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> pack = Pack<T>::load(z + i);
#pragma unroll
            for (int n = 0; n < N; ++n) own.see(wide(pack.value[n]));
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) own.see(wide(z[i]));
    }
    const float highest = block_max(own.maximum);
    // a thread without columns has seen nothing: its sum is 0, and exp(-inf - highest) is 0
    const float sum = own.maximum == -INFINITY_F && own.sum == 0.0f ? 0.0f : own.sum * expf(own.maximum - highest);
    MaximumAndSum all = {highest, block_sum(sum)};
    return all;
}

template <class T>
__device__ __forceinline__ void cross_entropy_row(T* z, const u32* targets, i64 width, float weight, double* losses) {
    constexpr int N = Pack<T>::N;
    z += (i64)blockIdx.x * width;
    const i64 target = targets[blockIdx.x];
    const float target_logit = wide(z[target]);
    const MaximumAndSum row = cross_entropy_statistics(z, width);
    if (threadIdx.x == 0) losses[blockIdx.x] = log((double)row.sum) + (double)row.maximum - (double)target_logit;
    const float factor = weight / row.sum;
    // the barriers inside the statistics stand between every thread's reading of the target and this writing
    if (is_packed<T>(width)) {
        for (i64 i = (i64)threadIdx.x * N; i < width; i += (i64)blockDim.x * N) {
            Pack<T> pack = Pack<T>::load(z + i);
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float p = factor * expf(wide(pack.value[n]) - row.maximum);
                pack.value[n] = narrow<T>(i + n == target ? p - weight : p);
            }
            pack.store(z + i);
        }
    } else {
        for (i64 i = threadIdx.x; i < width; i += blockDim.x) {
            const float p = factor * expf(wide(z[i]) - row.maximum);
            z[i] = narrow<T>(i == target ? p - weight : p);
        }
    }
}

template <class T>
__device__ __forceinline__ void log_prob_row(const T* z, const u32* targets, i64 width, double* log_probs) {
    z += (i64)blockIdx.x * width;
    const MaximumAndSum row = cross_entropy_statistics(z, width);
    if (threadIdx.x == 0) {
        const double target_logit = (double)wide(z[targets[blockIdx.x]]);
        log_probs[blockIdx.x] = target_logit - (double)row.maximum - log((double)row.sum);
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(512) cross_entropy_forward_##name(                           \
        T* logits, const u32* targets, i64 width, float weight, double* losses) {                             \
        cross_entropy_row<T>(logits, targets, width, weight, losses);                                         \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(512) cross_entropy_log_probs_##name(                         \
        const T* logits, const u32* targets, i64 width, double* log_probs) {                                  \
        log_prob_row<T>(logits, targets, width, log_probs);                                                   \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
