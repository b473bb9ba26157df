// What every kernel shares: the dtypes, conversions through f32, 16-byte packs, sums over a warp or a block.
//
// Sizes and indices are 64-bit throughout: rows times columns passes 2^31 for logits and for gate|up.
// A kernel `name` exists as name_f32, name_f16 and, from sm_80 on, name_bf16; arithmetic is f32 in all of them.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

typedef long long i64;
typedef unsigned int u32;
typedef unsigned char u8;

#if __CUDA_ARCH__ >= 800
#define FOR_DTYPES(KERNEL) KERNEL(f32, float) KERNEL(f16, __half) KERNEL(bf16, __nv_bfloat16)
#else
#define FOR_DTYPES(KERNEL) KERNEL(f32, float) KERNEL(f16, __half)
#endif

#define INFINITY_F __int_as_float(0x7f800000)

__device__ __forceinline__ float wide(float value) { return value; }
__device__ __forceinline__ float wide(__half value) { return __half2float(value); }
__device__ __forceinline__ float wide(__nv_bfloat16 value) { return __bfloat162float(value); }

template <class T> __device__ __forceinline__ T narrow(float value);
template <> __device__ __forceinline__ float narrow<float>(float value) { return value; }
template <> __device__ __forceinline__ __half narrow<__half>(float value) { return __float2half_rn(value); }
template <> __device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float value) {
    return __float2bfloat16_rn(value);
}

// Kinds of stored values, as `Kind` in cuda/dtype.rs numbers them.
#define KIND_F32 0
#define KIND_F16 1
#define KIND_BF16 2

// Value `index` of a buffer whose dtype is known at run time only.
__device__ __forceinline__ float load_kind(const void* values, i64 kind, i64 index) {
    if (kind == KIND_F32) return ((const float*)values)[index];
    if (kind == KIND_F16) return wide(((const __half*)values)[index]);
    return wide(((const __nv_bfloat16*)values)[index]);
}

__device__ __forceinline__ float round_kind(float value, i64 kind) {
    if (kind == KIND_F16) return wide(narrow<__half>(value));
    if (kind == KIND_BF16) return wide(narrow<__nv_bfloat16>(value));
    return value;
}

// 16 bytes of values: one load or store.
template <class T> struct alignas(16) Pack {
    static const int N = 16 / sizeof(T);
    T value[N];
    __device__ __forceinline__ static Pack load(const T* from) {
        Pack pack;
        *reinterpret_cast<uint4*>(&pack) = *reinterpret_cast<const uint4*>(from);
        return pack;
    }
    __device__ __forceinline__ void store(T* to) const {
        *reinterpret_cast<uint4*>(to) = *reinterpret_cast<const uint4*>(this);
    }
};

// Rows of `width` values starting at a 16-byte boundary stay on such boundaries.
template <class T> __device__ __forceinline__ bool is_packed(i64 width) { return width % Pack<T>::N == 0; }

__device__ __forceinline__ i64 thread_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ i64 thread_count() { return (i64)gridDim.x * blockDim.x; }

__device__ __forceinline__ float warp_sum(float value) {
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
__device__ __forceinline__ double warp_sum(double value) {
    for (int step = 16; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    return value;
}
__device__ __forceinline__ float warp_max(float value) {
    for (int step = 16; step > 0; step >>= 1) value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, step));
    return value;
}

// The sum over a block of at most 1024 threads, the same in every thread; blockDim.x is a multiple of 32.
template <class F> __device__ __forceinline__ F block_sum(F value) {
    __shared__ F parts[32];
    value = warp_sum(value);
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = value;
    __syncthreads();
    F total = 0;
    for (int warp = 0; warp < (int)(blockDim.x >> 5); ++warp) total += parts[warp];
    __syncthreads();
    return total;
}
__device__ __forceinline__ float block_max(float value) {
    __shared__ float parts[32];
    value = warp_max(value);
    if ((threadIdx.x & 31) == 0) parts[threadIdx.x >> 5] = value;
    __syncthreads();
    float highest = parts[0];
    for (int warp = 1; warp < (int)(blockDim.x >> 5); ++warp) highest = fmaxf(highest, parts[warp]);
    __syncthreads();
    return highest;
}

// A kernel that is started with `launch_struct` may begin before the one before it has ended: `wait_for_previous` before
// anything that one writes is touched, or anything it reads is written; `allow_next` lets the next one begin.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
