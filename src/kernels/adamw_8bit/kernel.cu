// adamw_8bit: bitsandbytes' AdamW with blockwise 8-bit moments, update first, then decay; one launch for all segments.
//
// A block of 256 threads takes the 256 parameters that share one absmax (or 256 of a segment in full precision).
// `is_eight_bit[s]` tells which. Roundings are those of adamw_8bit/cpu.rs: no fused multiply-add. `maps` holds the signed
// then the unsigned dynamic map.
#include "../cuda/common.cuh"

// The code of the nearest of 256 sorted values; exactly halfway goes to the lower one, NaN to 0.
__device__ __forceinline__ int adamw_8bit_nearest(const float* map, float value) {
    int index = 0;
    for (int half = 128; half > 0; half >>= 1) {
        const float middle = __fmul_rn(__fadd_rn(map[index + half - 1], map[index + half]), 0.5f);
        if (value > middle) index += half;
    }
    return index;
}

extern "C" __global__ void __launch_bounds__(256) adamw_8bit_f32(
    float* params, const float* gradients, u8* codes_m, u8* codes_v, float* absmax_m, float* absmax_v, float* full_m,
    float* full_v, const i64* first_block, const i64* offsets, const i64* lens, const i64* is_eight_bit, i64 segments,
    const float* maps, float beta1, float beta2, float fresh1, float fresh2, float step_size, float eps, float keep,
    float scale) {
    __shared__ float map_m[256], map_v[256];
    map_m[threadIdx.x] = maps[threadIdx.x];
    map_v[threadIdx.x] = maps[256 + threadIdx.x];
    i64 low = 0, high = segments;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (first_block[middle] <= (i64)blockIdx.x) low = middle; else high = middle;
    }
    __syncthreads();
    const i64 inside = ((i64)blockIdx.x - first_block[low]) * 256 + threadIdx.x;
    const bool is_there = inside < lens[low], eight_bit = is_eight_bit[low] != 0;
    const i64 i = offsets[low] + inside;
    const i64 block = offsets[low] / 256 + inside / 256;
    float m = 0.0f, v = 0.0f;
    if (is_there) {
        if (eight_bit) {
            m = __fmul_rn(map_m[codes_m[i]], absmax_m[block]);
            v = __fmul_rn(map_v[codes_v[i]], absmax_v[block]);
        } else {
            m = full_m[i];
            v = full_v[i];
        }
        const float g = __fmul_rn(gradients[i], scale);
        if (isfinite(g)) {
            m = __fadd_rn(__fmul_rn(beta1, m), __fmul_rn(fresh1, g));
            v = __fadd_rn(__fmul_rn(beta2, v), __fmul_rn(__fmul_rn(fresh2, g), g));
            const float moved = __fdiv_rn(__fmul_rn(step_size, m), __fadd_rn(__fsqrt_rn(v), eps));
            params[i] = __fmul_rn(__fsub_rn(params[i], moved), keep);
        } else {
            m = 0.0f;
            v = 0.0f;
        }
    }
    if (!eight_bit) {
        if (is_there) {
            full_m[i] = m;
            full_v[i] = v;
        }
        return;
    }
    // threads past the end bring zeros, which change neither maximum
    const float highest_m = block_max(fabsf(m)), highest_v = block_max(v);
    if (!is_there) return;
    int code_m = adamw_8bit_nearest(map_m, highest_m > 0.0f ? __fdiv_rn(m, highest_m) : 0.0f);
    if (highest_m > 0.0f) {
        const bool is_negative = signbit(map_m[code_m]);
        if (is_negative && !signbit(m)) ++code_m;
        if (!is_negative && signbit(m)) --code_m;
    }
    codes_m[i] = (u8)code_m;
    codes_v[i] = (u8)(highest_v > 0.0f ? adamw_8bit_nearest(map_v, __fdiv_rn(v, highest_v)) : 0);
    if (inside % 256 == 0) {
        absmax_m[block] = highest_m;
        absmax_v[block] = highest_v;
    }
}
