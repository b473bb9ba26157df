// linear_rows: y = x W^T [+ scale s B^T] [+ residual] for at most 8 rows of x, the weight read once, as it is stored.
//
// What decoding does: the time is that of reading W. A tile is 16 rows of W; a block of 8 warps shares its depth and adds
// up in a fixed order, then adds the adapters and the residual and rounds once. Blocks take tiles in turn.
// Tensor cores (linear_rows_nf4, linear_rows_dense; 16 bits, sm_80 on) because a multiply-add per value and row of x would
// cost more than the memory: an operand's 16 rows are W's, its 8 columns the rows of x. The order of the depth inside a
// product is free, so a lane's operand is what it loads in 16 bytes: 32 codes, or 8 values.
// NF4: a byte of two codes is looked up in shared memory, in one of 16 copies so that no two lanes of a half-warp meet in a
// bank; the pair times the block's scale is rounded as linear_dequantize rounds, so the values are the same to the bit.
// A warp computes with the codes it has while the next, of the next tile too, are on their way.
// With `half` set W is [gate | up], a tile is 8 rows of each, and y = silu(gate) * up as swiglu computes it.
// linear_row_nf4, for one row of x, can do all of a linear layer: it normalises x first, every block for itself, and its
// first blocks make s = x A^T, for which the others wait before they add the adapters' second product (arrived counts).
// linear_rows_plain: everything else (f32, odd depths, older chips), a warp per row of W, one part of W per launch.
#include "../cuda/nf4.cuh"
#include "../cuda/primitives.cuh"
#include "../linear/rows.cuh"

// ---- plain -----------------------------------------------------------------------------------------------------

template <class T> __device__ __forceinline__ void linear_rows_plain(const RowsArgs& args) {
    __shared__ float table[16];
    if (threadIdx.x < 16) table[threadIdx.x] = nf4_table[threadIdx.x];
    __syncthreads();
    allow_next();
    wait_for_previous();
    const RowsPart& part = args.parts[0];
    const Nf4Scales scales = {part.scale_codes, part.absmax, part.map, part.offset};
    const T* x = (const T*)args.x;
    const i64 depth = args.depth;
    const int lane = threadIdx.x & 31;
    for (i64 n = thread_index() / 32; n < part.rows; n += thread_count() / 32) {
        float sums[ROWS_MOST] = {};
        const i64 start = n * depth;
        if (part.kind == KIND_NF4 && depth % 64 == 0) {
            for (i64 k = lane * 8; k < depth; k += 256) {
                const u32 word = *reinterpret_cast<const u32*>(part.values + (start + k) / 2);
                const float scale = scales.of((start + k) >> 6);
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const u32 code = word >> (8 * (i / 2) + (i & 1 ? 0 : 4)) & 15u;
                    const float value = wide(narrow<T>(round_kind(__fmul_rn(table[code], scale), part.rounding)));
#pragma unroll
                    for (int r = 0; r < ROWS_MOST; ++r) {
                        if (r < args.rows) sums[r] += value * wide(x[r * depth + k + i]);
                    }
                }
            }
        } else {
            for (i64 k = lane; k < depth; k += 32) {
                float value;
                if (part.kind == KIND_NF4) {
                    const i64 element = start + k;
                    const u32 pair = part.values[element >> 1];
                    value = table[element & 1 ? pair & 15u : pair >> 4];
                    value = wide(narrow<T>(round_kind(__fmul_rn(value, scales.of(element >> 6)), part.rounding)));
                } else {
                    value = load_kind(part.values, part.kind, start + k);
                }
#pragma unroll
                for (int r = 0; r < ROWS_MOST; ++r) {
                    if (r < args.rows) sums[r] += value * wide(x[r * depth + k]);
                }
            }
        }
        const i64 row = part.first + n;
        RowsAdapter<T, ROWS_MOST>(args, (int)row, lane).add(args, 32, sums);
#pragma unroll
        for (int r = 0; r < ROWS_MOST; ++r) {
            if (r >= args.rows) break;
            float sum = warp_sum(sums[r]);
            const i64 at = r * args.out + row;
            if (args.residual != nullptr) sum += wide(((const T*)args.residual)[at]);
            if (lane == 0) ((T*)args.y)[at] = narrow<T>(sum);
        }
    }
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) linear_rows_plain_##name(const __grid_constant__ RowsArgs args) {         \
        linear_rows_plain<T>(args);                                                                           \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL

#if __CUDA_ARCH__ >= 800

// ---- tensor cores ----------------------------------------------------------------------------------------------

// 16 bytes that are read once.
__device__ __forceinline__ uint4 rows_stream(const void* from) { return __ldcs(reinterpret_cast<const uint4*>(from)); }

// A tile's sums, adapters and residual to y. `acc` is the warp's share: rows g and g + 8 of the tile, columns 2t, 2t + 1;
// `up` the thread's of row threadIdx.x / 16.
template <int ROWS> struct RowsSums {
    float sums[2][ROWS_WARPS][ROWS_TILE][ROWS], made[ROWS_TILE][ROWS];
};
template <class T, int ROWS>
__device__ __forceinline__ void rows_finish(
    const RowsArgs& args, int tile, const float (&acc)[4], const float (&up)[ROWS], int parity,
    RowsSums<ROWS>& shared) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    float(*sums)[ROWS_TILE][ROWS] = shared.sums[parity];
    if (2 * t < ROWS) {
        sums[warp][g][2 * t] = acc[0];
        sums[warp][g + 8][2 * t] = acc[2];
    }
    if (2 * t + 1 < ROWS) {
        sums[warp][g][2 * t + 1] = acc[1];
        sums[warp][g + 8][2 * t + 1] = acc[3];
    }
    __syncthreads();
    // 16 neighbouring threads per row of the tile; thread r of them is for row r of x in the end
    const int i = threadIdx.x >> 4, r = threadIdx.x & 15;
    float value = 0.0f;
    if (ROWS == 1) {
        value = up[0];
        if (r < ROWS_WARPS) value += sums[r][i][0];
        for (int step = 8; step > 0; step >>= 1) value += __shfl_xor_sync(0xffffffffu, value, step);
    } else {
        if (r < ROWS) {
#pragma unroll
            for (int w = 0; w < ROWS_WARPS; ++w) value += sums[w][i][r];
        }
        if (args.up_count > 0) {
#pragma unroll
            for (int column = 0; column < ROWS; ++column) {
                if (column >= (int)args.rows) break;
                float sum = up[column];
                for (int step = 8; step > 0; step >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, step);
                if (r == column) value += sum;
            }
        }
    }
    const int row = rows_index(args, tile, i);
    if (args.half > 0) {
        if (r < ROWS) shared.made[i][r] = value;
        __syncthreads();
        if (i < 8 && r < (int)args.rows && row >= 0) {
            const float gate = wide(narrow<T>(shared.made[i][r])), other = wide(narrow<T>(shared.made[i + 8][r]));
            ((T*)args.y)[r * args.half + row] = narrow<T>(gate / (1.0f + expf(-gate)) * other);
        }
    } else if (r < (int)args.rows && row >= 0) {
        const i64 at = r * args.out + row;
        if (args.residual != nullptr) value += wide(((const T*)args.residual)[at]);
        ((T*)args.y)[at] = narrow<T>(value);
    }
}

// A lane's row of W: its codes, and its block scales. A row that is not there is read as the first, to no effect.
template <bool NESTED> struct RowsLane {
    const u8* codes;
    const u8* scale_codes;
    const float* absmax;
    u32 block, part;

    __device__ __forceinline__ void set(const RowsArgs& args, int row) {
        if (row < 0) row = 0;
#pragma unroll
        for (int p = 0; p < ROWS_PARTS; ++p) {
            if (p >= args.part_count) break;
            const RowsPart& from = args.parts[p];
            const int own = row - (int)from.first;
            if (own < 0 || own >= (int)from.rows) continue;
            block = (u32)own * (u32)(args.depth / 64);
            codes = from.values + (i64)block * 32;
            part = p << 8;
            scale_codes = from.scale_codes + block;
            absmax = NESTED ? from.absmax : from.absmax + block;
        }
    }
};

// Beyond the depth a scale is 0: code 0 of a part that has no map.
#define ROWS_NOTHING (ROWS_PARTS << 8)

// What a lane loads for 32 codes.
template <bool NESTED> struct RowsPack {
    uint4 codes;
    float absmax;
    u32 scale;

    __device__ __forceinline__ void load(const RowsLane<NESTED>& from, u32 k, u32 depth) {
        const bool is_inside = k < depth;
        if (!is_inside) k = 0;
        codes = rows_stream(from.codes + (k >> 1));
        if (NESTED) {
            scale = from.scale_codes[k >> 6] | from.part;
            absmax = from.absmax[(from.block + (k >> 6)) >> 8];
        } else {
            absmax = from.absmax[k >> 6];
        }
        if (!is_inside) {
            absmax = 0.0f;
            scale = ROWS_NOTHING;
        }
    }
    __device__ __forceinline__ float value(const float* maps, const float* offsets) const {
        if (!NESTED) return absmax;
        return __fadd_rn(__fmul_rn(maps[scale], absmax), offsets[scale >> 8]);
    }
};

// Two values of the byte at bits 8 * byte of `word`, as the product's operand has them.
template <class T>
__device__ __forceinline__ u32 rows_pair(const float2* pairs, u32 copy, u32 word, int byte, float scale) {
    const u32 entry = (byte == 0 ? word << 7 : word >> (8 * byte - 7)) & 0x7f80u;
    const float2 values = *reinterpret_cast<const float2*>(reinterpret_cast<const u8*>(pairs) + (entry | copy));
    return pair<T>(__fmul_rn(values.x, scale), __fmul_rn(values.y, scale));
}

// The codes of AHEAD steps of a warp.
#define ROWS_STEP 128
template <bool NESTED, int AHEAD> struct RowsBatch {
    RowsPack<NESTED> low[AHEAD], high[AHEAD];

    __device__ __forceinline__ void load(
        const RowsLane<NESTED>& a, const RowsLane<NESTED>& b, u32 first, u32 steps, u32 depth) {
#pragma unroll
        for (int u = 0; u < AHEAD; ++u) {
            if (first + u * ROWS_WARPS >= steps) break;
            const u32 k = (first + u * ROWS_WARPS) * ROWS_STEP + (threadIdx.x & 3) * 32;
            low[u].load(a, k, depth);
            high[u].load(b, k, depth);
        }
    }
};

struct RowsTables {
    alignas(16) float2 pairs[256 * 16];
    float maps[ROWS_NOTHING + 1], offsets[ROWS_PARTS + 1], table[16];
};

extern __shared__ uint4 rows_normed[];

// x as rms_norm makes it, for this block.
template <class T> __device__ __forceinline__ void rows_normalise(const RowsArgs& args, T* normed) {
    const T* x = (const T*)args.x;
    const int depth = (int)args.depth;
    float squares = 0.0f;
    for (int i = threadIdx.x * 8; i < depth; i += 256 * 8) {
        const Pack<T> pack = Pack<T>::load(x + i);
#pragma unroll
        for (int n = 0; n < 8; ++n) squares += wide(pack.value[n]) * wide(pack.value[n]);
    }
    const float rstd = 1.0f / sqrtf(block_sum(squares) / (float)depth + args.eps);
    for (int i = threadIdx.x * 8; i < depth; i += 256 * 8) {
        Pack<T> pack = Pack<T>::load(x + i);
#pragma unroll
        for (int n = 0; n < 8; ++n) pack.value[n] = narrow<T>(wide(pack.value[n]) * rstd * args.norm[i + n]);
        pack.store(normed + i);
    }
    __syncthreads();
}

// Rows of s, one a block; the blocks that make them are the first, which run whatever the others wait for.
template <class T> __device__ __forceinline__ void rows_down(const RowsArgs& args, const T* x) {
    const int depth = (int)args.depth;
    for (int row = blockIdx.x; row < (int)args.down_rank; row += gridDim.x) {
        const T* a = nullptr;
        int index = row, column = 0;
#pragma unroll
        for (int r = 0; r < ROWS_PARTS; ++r) {
            if (r >= (int)args.run_count || a != nullptr) break;
            if (index < (int)args.runs[r].rank) {
                a = (const T*)args.runs[r].a + (i64)index * depth;
                column = (int)args.runs[r].s_start + index;
            } else {
                index -= (int)args.runs[r].rank;
            }
        }
        float dot = 0.0f;
#pragma unroll 4
        for (int i = threadIdx.x * 8; i < depth; i += 256 * 8) {
            const Pack<T> left = Pack<T>::load(x + i), right = Pack<T>::load(a + i);
#pragma unroll
            for (int n = 0; n < 8; ++n) dot += wide(left.value[n]) * wide(right.value[n]);
        }
        dot = block_sum(dot);
        if (threadIdx.x == 0) {
            ((T*)const_cast<void*>(args.s))[column] = narrow<T>(dot);
            __threadfence();
            atomicAdd(args.arrived, 1u);
        }
    }
}

__device__ __forceinline__ u32 rows_arrived(const u32* counter) {
    const u32 count = *reinterpret_cast<const volatile u32*>(counter);
    __threadfence();
    return count;
}

template <class T, int ROWS, bool NESTED>
__device__ __forceinline__ void linear_rows_nf4(const RowsArgs& args, RowsTables& tables, RowsSums<ROWS>& shared) {
    constexpr int AHEAD = ROWS == 1 ? 1 : 2;
    const int lane = threadIdx.x & 31, g = lane >> 2;
    const u32 warp = threadIdx.x >> 5, depth = (u32)args.depth, steps = (depth + ROWS_STEP - 1) / ROWS_STEP;
    const int tiles = rows_tiles(args);
    allow_next();
    // the first codes are on their way while the tables are made and the kernel before ends; W changes in neither
    // the first blocks make s, so the last get the tiles that are one too many
    int tile = gridDim.x - 1 - blockIdx.x;
    u32 first = warp;
    RowsLane<NESTED> low, high;
    low.set(args, rows_index(args, tile, g));
    high.set(args, rows_index(args, tile, g + 8));
    RowsBatch<NESTED, AHEAD> next;
    next.load(low, high, first, steps, depth);
    if (threadIdx.x < 16) tables.table[threadIdx.x] = nf4_table[threadIdx.x];
#pragma unroll
    for (int p = 0; p < ROWS_PARTS; ++p) {
        if (p >= args.part_count) break;
        if (NESTED) tables.maps[256 * p + threadIdx.x] = args.parts[p].map[threadIdx.x];
        if (threadIdx.x == 0) tables.offsets[p] = args.parts[p].offset;
    }
    if (threadIdx.x == 0) tables.maps[ROWS_NOTHING] = tables.offsets[ROWS_PARTS] = 0.0f;
    __syncthreads();
    for (int i = threadIdx.x; i < 256 * 16; i += 256) {
        tables.pairs[i] = make_float2(tables.table[i >> 8], tables.table[i >> 4 & 15]);
    }
    __syncthreads();
    wait_for_previous();
    const u32 copy = (lane & 15) * 8;
    // columns of the product beyond the rows of x are computed from the last one and never read
    const T* x = (const T*)args.x + (g < args.rows ? g : args.rows - 1) * args.depth;
    bool waits = false;
    if (ROWS == 1 && args.norm != nullptr) {
        rows_normalise<T>(args, reinterpret_cast<T*>(rows_normed));
        x = reinterpret_cast<const T*>(rows_normed);
    }
    if (ROWS == 1 && args.arrived != nullptr) {
        rows_down<T>(args, x);
        waits = true;
    }
    int parity = 0;
    while (tile < tiles) {
        float acc[2][4] = {}, up[ROWS] = {};
        const int own_tile = tile;
        const RowsAdapter<T, ROWS> adapter(args, rows_index(args, own_tile, threadIdx.x >> 4), threadIdx.x & 15);
        bool is_over;
        do {
            const RowsBatch<NESTED, AHEAD> batch = next;
            const u32 start = first;
            first += ROWS_WARPS * AHEAD;
            is_over = first >= steps;
            if (is_over) {
                first = warp;
                tile += gridDim.x;
                if (tile < tiles) {
                    low.set(args, rows_index(args, tile, g));
                    high.set(args, rows_index(args, tile, g + 8));
                }
            }
            if (tile < tiles) next.load(low, high, first, steps, depth);
#pragma unroll
            for (int u = 0; u < AHEAD; ++u) {
                if (start + u * ROWS_WARPS >= steps) break;
                const u32 k = (start + u * ROWS_WARPS) * ROWS_STEP + (threadIdx.x & 3) * 32;
                const uint4* right = reinterpret_cast<const uint4*>(x + (k < depth ? k : 0));
                const float scale_a = batch.low[u].value(tables.maps, tables.offsets);
                const float scale_b = batch.high[u].value(tables.maps, tables.offsets);
                const uint4 a = batch.low[u].codes, b = batch.high[u].codes;
                const u32 words_a[4] = {a.x, a.y, a.z, a.w}, words_b[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    const uint4 four = right[j];
                    const u32 rights[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
                    for (int i = 0; i < 2; ++i) {
                        const u32 left[4] = {
                            rows_pair<T>(tables.pairs, copy, words_a[j], 2 * i, scale_a),
                            rows_pair<T>(tables.pairs, copy, words_b[j], 2 * i, scale_b),
                            rows_pair<T>(tables.pairs, copy, words_a[j], 2 * i + 1, scale_a),
                            rows_pair<T>(tables.pairs, copy, words_b[j], 2 * i + 1, scale_b)};
                        mma<T>(acc[i], left, rights[2 * i], rights[2 * i + 1]);
                    }
                }
            }
        } while (!is_over);
#pragma unroll
        for (int c = 0; c < 4; ++c) acc[0][c] += acc[1][c];
        if (waits) {
            if (threadIdx.x == 0) {
                while (rows_arrived(args.arrived) < (u32)args.down_rank) {}
            }
            __syncthreads();
            waits = false;
        }
        adapter.add(args, 16, up);
        rows_finish<T, ROWS>(args, own_tile, acc[0], up, parity, shared);
        parity ^= 1;
    }
    if (ROWS == 1 && args.arrived != nullptr && threadIdx.x == 0) {
        if (atomicAdd(args.arrived + 1, 1u) == gridDim.x - 1) args.arrived[0] = args.arrived[1] = 0;
    }
}

template <class T> __device__ __forceinline__ void linear_rows_dense(const RowsArgs& args) {
    constexpr int STEP = 32, AHEAD = 8;
    __shared__ RowsSums<ROWS_MOST> shared;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, g = lane >> 2, t = lane & 3;
    const i64 depth = args.depth, steps = (depth + STEP - 1) / STEP;
    const int tiles = rows_tiles(args);
    const T* x = (const T*)args.x + g * depth;
    const T* w = (const T*)args.parts[0].values;
    const bool has_x = g < args.rows;
    int parity = 0;
    allow_next();
    wait_for_previous();
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, parity ^= 1) {
        const i64 low = rows_index(args, tile, g), high = rows_index(args, tile, g + 8);
        float acc[4] = {}, up[ROWS_MOST] = {};
        for (i64 first = warp; first < steps; first += ROWS_WARPS * AHEAD) {
            uint4 a[AHEAD], b[AHEAD];
#pragma unroll
            for (int u = 0; u < AHEAD; ++u) {
                const i64 k = (first + u * ROWS_WARPS) * STEP + t * 8;
                a[u] = b[u] = make_uint4(0, 0, 0, 0);
                if (k < depth && low >= 0) a[u] = rows_stream(w + low * depth + k);
                if (k < depth && high >= 0) b[u] = rows_stream(w + high * depth + k);
            }
#pragma unroll
            for (int u = 0; u < AHEAD; ++u) {
                if (first + u * ROWS_WARPS >= steps) break;
                const i64 k = (first + u * ROWS_WARPS) * STEP + t * 8;
                uint4 right = make_uint4(0, 0, 0, 0);
                if (has_x && k < depth) right = *reinterpret_cast<const uint4*>(x + k);
                const u32 left[4] = {a[u].x, b[u].x, a[u].y, b[u].y}, next[4] = {a[u].z, b[u].z, a[u].w, b[u].w};
                mma<T>(acc, left, right.x, right.y);
                mma<T>(acc, next, right.z, right.w);
            }
        }
        RowsAdapter<T, ROWS_MOST>(args, rows_index(args, tile, threadIdx.x >> 4), threadIdx.x & 15).add(args, 16, up);
        rows_finish<T, ROWS_MOST>(args, tile, acc, up, parity, shared);
    }
}

template <class T, int ROWS> __device__ __forceinline__ void linear_rows_nf4_any(const RowsArgs& args) {
    __shared__ RowsTables tables;
    __shared__ RowsSums<ROWS> shared;
    if (args.parts[0].scale_codes != nullptr) linear_rows_nf4<T, ROWS, true>(args, tables, shared);
    else linear_rows_nf4<T, ROWS, false>(args, tables, shared);
}

// linear_row_nf4 is for one row of x: less to keep, so that a third block fits.
#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256, 3) linear_row_nf4_##name(                               \
        const __grid_constant__ RowsArgs args) {                                                              \
        linear_rows_nf4_any<T, 1>(args);                                                                      \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2) linear_rows_nf4_##name(                              \
        const __grid_constant__ RowsArgs args) {                                                              \
        linear_rows_nf4_any<T, ROWS_MOST>(args);                                                              \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(256, 2) linear_rows_dense_##name(                            \
        const __grid_constant__ RowsArgs args) {                                                              \
        linear_rows_dense<T>(args);                                                                           \
    }
KERNEL(f16, __half)
KERNEL(bf16, __nv_bfloat16)
#undef KERNEL

#endif
