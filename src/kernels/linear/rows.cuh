// What the kernels of rows.cu are given, which rows of W a tile holds, and the adapters' second product.
#pragma once
#include "../cuda/common.cuh"

#define ROWS_MOST 8
#define ROWS_PARTS 3
#define ROWS_WARPS 8
#define ROWS_TILE 16
#define KIND_NF4 3

// Rows first .. first + rows of W. `values` are codes or, where `kind` is a dtype's, numbers.
struct RowsPart {
    const u8* values;
    const u8* scale_codes;
    const float* absmax;
    const float* map;
    float offset, unused;
    i64 rounding, first, rows, kind;
};

// One adapter: columns out_start .. out_start + out_len of y.
struct RowsUp {
    const void* b;
    i64 out_start, out_len, rank, s_start;
    float scale, unused;
};

// Consecutive rows of the adapters' A whose columns in s follow one another.
struct RowsRun {
    const void* a;
    i64 s_start, rank;
};

struct RowsArgs {
    const void* x;
    i64 rows, depth, out, half;
    const void* s;
    i64 s_cols;
    const void* residual;
    void* y;
    i64 part_count, up_count;
    RowsPart parts[ROWS_PARTS];
    RowsUp ups[ROWS_PARTS];
    // linear_row_nf4 only: x is normalised first where norm is not null, and s = x A^T is made here where arrived is not
    const float* norm;
    float eps, unused;
    u32* arrived; // rows of s that are made, blocks that are through; both 0 between launches
    i64 down_rank, run_count;
    RowsRun runs[ROWS_PARTS];
};

// The row of W that is row `i` of a tile, or -1. Rows and tiles are counted in 32 bits.
__device__ __forceinline__ int rows_index(const RowsArgs& args, int tile, int i) {
    const int half = (int)args.half;
    if (half > 0) {
        const int column = tile * (ROWS_TILE / 2) + (i & 7);
        if (column >= half) return -1;
        return i < 8 ? column : half + column;
    }
    const int row = tile * ROWS_TILE + i;
    return row < (int)args.out ? row : -1;
}

__device__ __forceinline__ int rows_tiles(const RowsArgs& args) {
    if (args.half > 0) return ((int)args.half + 7) / 8;
    return ((int)args.out + ROWS_TILE - 1) / ROWS_TILE;
}

// A thread's share of the adapters' sums for row `row` of W, one for each row of x: ranks lane, lane + lanes, ... Made
// before s is there; what it reads of B first is then on its way already.
template <class T, int ROWS> struct RowsAdapter {
    const T* b;
    const T* s;
    int rank, lane;
    float scale, first;

    __device__ __forceinline__ RowsAdapter(const RowsArgs& args, int row, int lane) : lane(lane) {
        b = s = nullptr;
        rank = 0;
        scale = first = 0.0f;
#pragma unroll
        for (int u = 0; u < ROWS_PARTS; ++u) {
            if (u >= (int)args.up_count) break;
            const RowsUp& up = args.ups[u];
            const int own = row - (int)up.out_start;
            if (own < 0 || own >= (int)up.out_len) continue;
            rank = (int)up.rank;
            b = (const T*)up.b + (i64)own * rank;
            s = (const T*)args.s + up.s_start;
            scale = up.scale;
            if (lane < rank) first = wide(b[lane]);
        }
    }
    __device__ __forceinline__ void add(const RowsArgs& args, int lanes, float (&sums)[ROWS]) const {
#pragma unroll 1
        for (int j = lane; j < rank; j += lanes) {
            const float value = scale * (j == lane ? first : wide(b[j]));
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                // another block may have written it a moment ago
                if (r < (int)args.rows) sums[r] += value * fresh(s + r * (int)args.s_cols + j);
            }
        }
    }
    __device__ static __forceinline__ float fresh(const float* from) { return __ldcg(from); }
    template <class H> __device__ static __forceinline__ float fresh(const H* from) {
        const unsigned short bits = __ldcg(reinterpret_cast<const unsigned short*>(from));
        return wide(*reinterpret_cast<const H*>(&bits));
    }
};
