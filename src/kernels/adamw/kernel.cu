// adamw: torch's AdamW on the segments of a flat buffer, one launch for all of them.
//
// A block of 256 threads takes 256 parameters of one segment. `first_block[s]` is the number of blocks before segment s,
// so the segment is found by halving. All in f32 with the roundings of adamw/cpu.rs: no fused multiply-add.
#include "../cuda/common.cuh"

// The last index s with first[s] <= block.
__device__ __forceinline__ i64 adamw_segment(const i64* first_block, i64 segments, i64 block) {
    i64 low = 0, high = segments;
    while (high - low > 1) {
        const i64 middle = (low + high) / 2;
        if (first_block[middle] <= block) low = middle; else high = middle;
    }
    return low;
}

extern "C" __global__ void __launch_bounds__(256) adamw_f32(
    float* params, const float* gradients, float* m, float* v, const i64* first_block, const i64* offsets,
    const i64* lens, i64 segments, float beta1, float beta2, float fresh1, float fresh2, float keep, float step_size,
    float root_factor, float eps, float scale) {
    const i64 segment = adamw_segment(first_block, segments, blockIdx.x);
    const i64 inside = ((i64)blockIdx.x - first_block[segment]) * 256 + threadIdx.x;
    if (inside >= lens[segment]) return;
    const i64 i = offsets[segment] + inside;
    const float g = __fmul_rn(gradients[i], scale);
    const float new_m = __fadd_rn(__fmul_rn(beta1, m[i]), __fmul_rn(fresh1, g));
    const float new_v = __fadd_rn(__fmul_rn(beta2, v[i]), __fmul_rn(__fmul_rn(fresh2, g), g));
    const float root = __fadd_rn(__fmul_rn(__fsqrt_rn(new_v), root_factor), eps);
    m[i] = new_m;
    v[i] = new_v;
    params[i] = __fsub_rn(__fmul_rn(params[i], keep), __fdiv_rn(__fmul_rn(step_size, new_m), root));
}
