// linear_quantize: numbers of any dtype to NF4 with doubly quantised scales, bit for bit what quant::nf4 makes on the CPU
// (which is what bitsandbytes makes).
//
// linear_quantize: a thread per 8 values, 8 neighbouring threads per block of 64: its largest magnitude, then the codes. A
// last, shorter block is divided by its scale, the others multiplied by the reciprocal; a padding nibble holds the code of 0.
// linear_scale_mean: the mean of the scales, in f64 and in the order of quant::nf4::mean: 1024 running sums, added in halves.
// linear_quantize_scales: a block of 256 threads per 256 scales: the mean taken off, the rest by the signed dynamic map.
// Every rounding is spelled out, so that none is fused.
#include "../cuda/common.cuh"

#define QUANT_BLOCK 64
#define QUANT_SCALES 256
#define QUANT_SUMS 1024
#define QUANT_LEAST 1e-38f

__constant__ float nf4_thresholds[15] = {
    -0.8480964f,   -0.6106329f,  -0.45999527f, -0.33967942f, -0.2346074f, -0.13791174f, -0.045525018f, 0.03979015f,
    0.12025525f, 0.20352125f, 0.29201376f, 0.38931254f,  0.50166345f, 0.6427869f,   0.86147845f};

__device__ __forceinline__ u32 quantize_nearest(float value) {
    u32 code = 0;
#pragma unroll
    for (int i = 0; i < 15; ++i) code += value > nf4_thresholds[i];
    return code;
}

extern "C" __global__ void __launch_bounds__(256) linear_quantize_f32(
    const void* from, i64 kind, i64 elements, u8* codes, float* absmax) {
    const i64 blocks = (elements + QUANT_BLOCK - 1) / QUANT_BLOCK, bytes = (elements + 1) / 2;
    for (i64 i = thread_index(); i < blocks * 8; i += thread_count()) {
        const i64 first = i * 8, block = i >> 3;
        float values[8];
        if (first + 8 <= elements && kind != KIND_F32) {
            const uint4 four = reinterpret_cast<const uint4*>(from)[i];
            const u32 words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
            for (int n = 0; n < 8; ++n) {
                const unsigned short half = (unsigned short)(words[n / 2] >> (n & 1) * 16);
                values[n] = kind == KIND_F16 ? __half2float(__ushort_as_half(half)) : __int_as_float((int)half << 16);
            }
        } else {
#pragma unroll
            for (int n = 0; n < 8; ++n) values[n] = first + n < elements ? load_kind(from, kind, first + n) : 0.0f;
        }
        float scale = 0.0f;
#pragma unroll
        for (int n = 0; n < 8; ++n) scale = fmaxf(scale, fabsf(values[n]));
        // the 8 threads of a block of values come and go together, those of a warp may not
        const u32 lanes = 0xffu << (threadIdx.x & 24);
        for (int step = 4; step > 0; step >>= 1) scale = fmaxf(scale, __shfl_xor_sync(lanes, scale, step));
        const bool is_whole = (block + 1) * QUANT_BLOCK <= elements;
        const float divisor = fmaxf(scale, QUANT_LEAST), inverse = __fdiv_rn(1.0f, divisor);
        if ((threadIdx.x & 7) == 0) absmax[block] = is_whole ? scale : divisor;
        u32 word = 0;
#pragma unroll
        for (int n = 0; n < 8; ++n) {
            const float value = is_whole ? __fmul_rn(values[n], inverse) : __fdiv_rn(values[n], divisor);
            const u32 code = first + n < elements ? quantize_nearest(fminf(fmaxf(value, -1.0f), 1.0f)) : 7u;
            word |= code << (8 * (n / 2) + (n & 1 ? 0 : 4));
        }
        if (first + 8 <= elements) {
            reinterpret_cast<u32*>(codes)[i] = word;
        } else {
            for (int n = 0; n < 4; ++n) {
                if (first / 2 + n < bytes) codes[first / 2 + n] = (u8)(word >> 8 * n);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(QUANT_SUMS) linear_scale_mean_f32(
    const float* absmax, i64 count, float* mean) {
    __shared__ double sums[QUANT_SUMS];
    double sum = 0.0;
#pragma unroll 8
    for (i64 i = threadIdx.x; i < count; i += QUANT_SUMS) sum = __dadd_rn(sum, (double)absmax[i]);
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = QUANT_SUMS / 2; half > 0; half >>= 1) {
        if (threadIdx.x < half) sums[threadIdx.x] = __dadd_rn(sums[threadIdx.x], sums[threadIdx.x + half]);
        __syncthreads();
    }
    if (threadIdx.x == 0) mean[0] = (float)__ddiv_rn(sums[0], (double)count);
}

extern "C" __global__ void __launch_bounds__(QUANT_SCALES) linear_quantize_scales_f32(
    const float* absmax, i64 count, const float* mean, const float* map, u8* codes, float* scales) {
    __shared__ float values[256];
    values[threadIdx.x] = map[threadIdx.x];
    const i64 i = (i64)blockIdx.x * QUANT_SCALES + threadIdx.x;
    const float centred = i < count ? __fsub_rn(absmax[i], mean[0]) : 0.0f;
    const float scale = block_max(fmaxf(0.0f, fabsf(centred)));
    if (threadIdx.x == 0) scales[blockIdx.x] = scale;
    if (i >= count) return;
    const float divisor = fmaxf(scale, QUANT_LEAST);
    const bool is_whole = ((i64)blockIdx.x + 1) * QUANT_SCALES <= count;
    const float value = is_whole ? __fmul_rn(centred, __fdiv_rn(1.0f, divisor)) : __fdiv_rn(centred, divisor);
    int index = 0;
    for (int half = 128; half > 0; half >>= 1) {
        const float middle = __fmul_rn(__fadd_rn(values[index + half - 1], values[index + half]), 0.5f);
        if (value > middle) index += half;
    }
    codes[i] = (u8)index;
}
