// The 16 values of an NF4 code, and the scale of a block as it is stored; bit for bit quant::nf4.
#pragma once
#include "../cuda/common.cuh"

__constant__ float nf4_table[16] = {
    -1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
    -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
    0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f,
    1.0f};

// Scales of NF4 blocks; `codes` is null when they are plain.
struct Nf4Scales {
    const u8* codes;
    const float* absmax;
    const float* map;
    float offset;
    __device__ __forceinline__ float of(i64 block) const {
        if (codes == nullptr) return absmax[block];
        return __fadd_rn(__fmul_rn(map[codes[block]], absmax[block >> 8]), offset);
    }
};
