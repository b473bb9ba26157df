// attention for head_dim 64 and 128 in bf16 and f16, from sm_80 on: FlashAttention-2 on the tensor cores of a warp.
//
// A block takes a tile of queries (or, for dk and dv, of keys) of one text and one head; `tiles` holds for each the text's
// first row, its length and the tile's first row in it, the longest work first, heads of a group side by side so that
// they share keys in the second cache. Softmax in base 2 with a running maximum; sums f32; p and ds are rounded to the
// dtype before their products. Only tiles on the diagonal, at the window's edge or at the text's end are masked.
// Backward is two kernels, one per output, with no atomics: each sum has one order, so the bits are the same every time;
// it costs computing q * k and do * v twice. One tile of keys and values in flight, each copied while the other is used.
#include "../attention/mma.cuh"

#if __CUDA_ARCH__ >= 800

struct AttentionTile {
    int start, len, first;
    __device__ __forceinline__ AttentionTile(const int* tiles, i64 index)
        : start(tiles[3 * index]), len(tiles[3 * index + 1]), first(tiles[3 * index + 2]) {}
};

__device__ __forceinline__ bool attention_sees(int query, int key, int window) {
    return key <= query && (window == 0 || query - key < window);
}

// WARPS warps of MT * 16 queries each against BC keys at a time.
template <class T, int D, int WARPS, int MT, int BC>
__device__ __forceinline__ void attention_mma_forward(
    const T* qkv, const int* tiles, i64 rows, int heads, int kv_heads, int window, T* o, float* lse) {
    constexpr int BR = WARPS * MT * 16, THREADS = WARPS * 32;
    extern __shared__ __align__(128) u8 attention_shared[];
    const u32 queries = shared_address(attention_shared), keys = queries + BR * D * 2, values = keys + BC * D * 2;
    const AttentionTile tile(tiles, blockIdx.x / heads);
    const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, t = lane & 3;
    const i64 width = (i64)(heads + 2 * kv_heads) * D;
    const T* text = qkv + tile.start * width;
    const T* k = text + (i64)(heads + kv_head) * D;
    const T* v = text + (i64)(heads + kv_heads + kv_head) * D;
    const float c = rsqrtf((float)D) * LOG2_E;

    const int end = min(tile.first + BR, tile.len), blocks = (end + BC - 1) / BC;
    int block = window > 0 && tile.first + 1 > window ? (tile.first + 1 - window) / BC : 0;
    tile_load<BR, D, THREADS>(queries, text + tile.first * width + (i64)head * D, width, tile.len - tile.first);
    tile_load<BC, D, THREADS>(keys, k + (i64)block * BC * width, width, tile.len - block * BC);

    float sum[MT][D / 8][4], highest[MT][2], total[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        highest[m][0] = highest[m][1] = -INFINITY_F;
        total[m][0] = total[m][1] = 0.0f;
#pragma unroll
        for (int n = 0; n < D / 8; ++n) sum[m][n][0] = sum[m][n][1] = sum[m][n][2] = sum[m][n][3] = 0.0f;
    }
    const int own = warp * MT * 16, first_query = tile.first + own;
    for (; block < blocks; ++block) {
        const int first_key = block * BC;
        copy_wait();
        __syncthreads();  // keys are there; nobody reads the values of the round before any more
        tile_load<BC, D, THREADS>(values, v + (i64)first_key * width, width, tile.len - first_key);
        float s[MT][BC / 8][4];
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < BC / 8; ++n) s[m][n][0] = s[m][n][1] = s[m][n][2] = s[m][n][3] = 0.0f;
        }
#pragma unroll
        for (int step = 0; step < D / 16; ++step) {
            u32 a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m) tile_rows<D>(a[m], queries, own + 16 * m, step);
#pragma unroll
            for (int n = 0; n < BC / 16; ++n) {
                u32 b[4];
                tile_columns_of_rows<D>(b, keys, 16 * n, step);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    mma<T>(s[m][2 * n], a[m], b[0], b[1]);
                    mma<T>(s[m][2 * n + 1], a[m], b[2], b[3]);
                }
            }
        }
        const int last_query = first_query + MT * 16 - 1;
        if (first_key + BC - 1 > first_query || (window > 0 && last_query - first_key >= window)) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int n = 0; n < BC / 8; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        const int query = first_query + 16 * m + lane / 4 + i / 2 * 8;
                        const int key = first_key + 8 * n + 2 * t + i % 2;
                        if (!attention_sees(query, key, window)) s[m][n][i] = -INFINITY_F;
                    }
                }
            }
        }
        copy_wait();
        __syncthreads();  // values are there; nobody reads these keys any more
        if (block + 1 < blocks) {
            tile_load<BC, D, THREADS>(keys, k + (i64)(first_key + BC) * width, width, tile.len - first_key - BC);
        }
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                float most = highest[m][half];
#pragma unroll
                for (int n = 0; n < BC / 8; ++n) most = fmaxf(most, fmaxf(s[m][n][2 * half], s[m][n][2 * half + 1]));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
                // a row that has seen no key yet: exp2(-inf - 0) is 0, exp2(-inf + inf) would be NaN
                const float base = most == -INFINITY_F ? 0.0f : most * c;
                const float keep = exp2_fast(highest[m][half] * c - base);
                highest[m][half] = most;
                float added = 0.0f;
#pragma unroll
                for (int n = 0; n < BC / 8; ++n) {
                    const float p = exp2_fast(s[m][n][2 * half] * c - base);
                    const float q = exp2_fast(s[m][n][2 * half + 1] * c - base);
                    s[m][n][2 * half] = p;
                    s[m][n][2 * half + 1] = q;
                    added += p + q;
                }
                total[m][half] = total[m][half] * keep + added;
#pragma unroll
                for (int n = 0; n < D / 8; ++n) {
                    sum[m][n][2 * half] *= keep;
                    sum[m][n][2 * half + 1] *= keep;
                }
            }
        }
#pragma unroll
        for (int step = 0; step < BC / 16; ++step) {
            u32 a[MT][4];
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                a[m][0] = pair<T>(s[m][2 * step][0], s[m][2 * step][1]);
                a[m][1] = pair<T>(s[m][2 * step][2], s[m][2 * step][3]);
                a[m][2] = pair<T>(s[m][2 * step + 1][0], s[m][2 * step + 1][1]);
                a[m][3] = pair<T>(s[m][2 * step + 1][2], s[m][2 * step + 1][3]);
            }
#pragma unroll
            for (int d = 0; d < D / 16; ++d) {
                u32 b[4];
                tile_rows_as_depth<D>(b, values, 16 * step, d);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
                    mma<T>(sum[m][2 * d], a[m], b[0], b[1]);
                    mma<T>(sum[m][2 * d + 1], a[m], b[2], b[3]);
                }
            }
        }
    }
    const float scale = rsqrtf((float)D);
    T* out = o + ((i64)tile.start * heads + head) * D;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        float factor[2];
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            float all = total[m][half];
            all += __shfl_xor_sync(0xffffffffu, all, 1);
            all += __shfl_xor_sync(0xffffffffu, all, 2);
            factor[half] = 1.0f / all;
            const int query = first_query + 16 * m + lane / 4 + 8 * half;
            if (t == 0 && query < tile.len) {
                lse[(i64)head * rows + tile.start + query] = highest[m][half] * scale + logf(all);
            }
        }
        tile_store<T, D>(sum[m], factor[0], factor[1], out, (i64)heads * D, first_query + 16 * m, tile.len);
    }
}

// dq of WARPS * 16 queries, BC keys at a time.
template <class T, int D, int WARPS, int BC>
__device__ __forceinline__ void attention_mma_backward_q(
    const T* do_, const T* qkv, const float* lse, const float* delta, const int* tiles, i64 rows, int heads,
    int kv_heads, int window, T* dqkv) {
    constexpr int BR = WARPS * 16, THREADS = WARPS * 32;
    extern __shared__ __align__(128) u8 attention_shared[];
    const u32 queries = shared_address(attention_shared), gradients = queries + BR * D * 2;
    const u32 keys = gradients + BR * D * 2, values = keys + BC * D * 2;
    const AttentionTile tile(tiles, blockIdx.x / heads);
    const int head = blockIdx.x % heads, kv_head = head / (heads / kv_heads);
    const int lane = threadIdx.x & 31, own = (threadIdx.x >> 5) * 16;
    const i64 width = (i64)(heads + 2 * kv_heads) * D, o_width = (i64)heads * D;
    const T* text = qkv + tile.start * width;
    const T* k = text + (i64)(heads + kv_head) * D;
    const T* v = text + (i64)(heads + kv_heads + kv_head) * D;
    const float scale = rsqrtf((float)D), c = scale * LOG2_E;
    const int there = tile.len - tile.first;
    tile_load<BR, D, THREADS>(queries, text + tile.first * width + (i64)head * D, width, there);
    tile_load<BR, D, THREADS>(
        gradients, do_ + (i64)(tile.start + tile.first) * o_width + (i64)head * D, o_width, there);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int query = tile.first + own + lane / 4 + 8 * half;
        const i64 at = (i64)head * rows + tile.start + query;
        row_lse[half] = query < tile.len ? lse[at] * LOG2_E : 0.0f;
        row_delta[half] = query < tile.len ? delta[at] : 0.0f;
    }
    float dq[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) dq[n][0] = dq[n][1] = dq[n][2] = dq[n][3] = 0.0f;
    const int end = min(tile.first + BR, tile.len), blocks = (end + BC - 1) / BC;
    for (int block = window > 0 && tile.first + 1 > window ? (tile.first + 1 - window) / BC : 0; block < blocks; ++block) {
        const int first_key = block * BC;
        __syncthreads();  // nobody reads the tiles of the round before any more
        tile_load<BC, D, THREADS>(keys, k + (i64)first_key * width, width, tile.len - first_key);
        tile_load<BC, D, THREADS>(values, v + (i64)first_key * width, width, tile.len - first_key);
        copy_wait();
        __syncthreads();
        float s[BC / 8][4], dp[BC / 8][4];
        tile_product<T, D, BC>(s, queries, own, keys);
        tile_product<T, D, BC>(dp, gradients, own, values);
#pragma unroll
        for (int n = 0; n < BC / 8; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int query = tile.first + own + lane / 4 + i / 2 * 8;
                const int key = first_key + 8 * n + lane % 4 * 2 + i % 2;
                const float p = exp2_fast(s[n][i] * c - row_lse[i / 2]);
                s[n][i] = attention_sees(query, key, window) && query < tile.len ? p * (dp[n][i] - row_delta[i / 2]) : 0.0f;
            }
        }
        tile_accumulate<T, D, BC>(dq, s, keys);
    }
    tile_store<T, D>(
        dq, scale, scale, dqkv + tile.start * width + (i64)head * D, width, tile.first + own, tile.len);
}

// dk and dv of WARPS * 16 keys, BQ queries at a time, over the group's heads in ascending order. Scores are computed
// transposed (keys x queries), so that p and ds are left operands as they come.
template <class T, int D, int WARPS, int BQ>
__device__ __forceinline__ void attention_mma_backward_kv(
    const T* do_, const T* qkv, const float* lse, const float* delta, const int* tiles, i64 rows, int heads,
    int kv_heads, int window, T* dqkv) {
    constexpr int BC = WARPS * 16, THREADS = WARPS * 32;
    extern __shared__ __align__(128) u8 attention_shared[];
    __shared__ float column_lse[BQ], column_delta[BQ];
    const u32 keys = shared_address(attention_shared), values = keys + BC * D * 2;
    const u32 queries = values + BC * D * 2, gradients = queries + BQ * D * 2;
    const AttentionTile tile(tiles, blockIdx.x / kv_heads);
    const int kv_head = blockIdx.x % kv_heads, group = heads / kv_heads;
    const int lane = threadIdx.x & 31, own = (threadIdx.x >> 5) * 16;
    const i64 width = (i64)(heads + 2 * kv_heads) * D, o_width = (i64)heads * D;
    const T* text = qkv + tile.start * width;
    const i64 k_column = (i64)(heads + kv_head) * D, v_column = (i64)(heads + kv_heads + kv_head) * D;
    const float scale = rsqrtf((float)D), c = scale * LOG2_E;
    const int there = tile.len - tile.first;
    tile_load<BC, D, THREADS>(keys, text + tile.first * width + k_column, width, there);
    tile_load<BC, D, THREADS>(values, text + tile.first * width + v_column, width, there);
    float dk[D / 8][4], dv[D / 8][4];
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
        dk[n][0] = dk[n][1] = dk[n][2] = dk[n][3] = 0.0f;
        dv[n][0] = dv[n][1] = dv[n][2] = dv[n][3] = 0.0f;
    }
    // the last key is seen by the queries before it + window; 64-bit, for a window may be as large as it likes
    const i64 seen_until = (i64)min(tile.first + BC, tile.len) - 1 + window;
    const int end = window > 0 && seen_until < tile.len ? (int)seen_until : tile.len;
    for (int head = kv_head * group; head < (kv_head + 1) * group; ++head) {
        for (int first_query = tile.first / BQ * BQ; first_query < end; first_query += BQ) {
            __syncthreads();  // nobody reads the tiles of the round before any more
            const int valid = tile.len - first_query;
            tile_load<BQ, D, THREADS>(queries, text + first_query * width + (i64)head * D, width, valid);
            tile_load<BQ, D, THREADS>(
                gradients, do_ + (i64)(tile.start + first_query) * o_width + (i64)head * D, o_width, valid);
            for (int i = threadIdx.x; i < BQ; i += THREADS) {
                const i64 at = (i64)head * rows + tile.start + first_query + i;
                column_lse[i] = i < valid ? lse[at] * LOG2_E : 0.0f;
                column_delta[i] = i < valid ? delta[at] : 0.0f;
            }
            copy_wait();
            __syncthreads();
            float p[BQ / 8][4];
            tile_product<T, D, BQ>(p, keys, own, queries);
#pragma unroll
            for (int n = 0; n < BQ / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    const int key = tile.first + own + lane / 4 + i / 2 * 8, column = 8 * n + lane % 4 * 2 + i % 2;
                    const int query = first_query + column;
                    const bool sees = attention_sees(query, key, window) && query < tile.len;
                    p[n][i] = sees ? exp2_fast(p[n][i] * c - column_lse[column]) : 0.0f;
                }
            }
            tile_accumulate<T, D, BQ>(dv, p, gradients);
            float dp[BQ / 8][4];
            tile_product<T, D, BQ>(dp, values, own, gradients);
#pragma unroll
            for (int n = 0; n < BQ / 8; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    p[n][i] *= dp[n][i] - column_delta[8 * n + lane % 4 * 2 + i % 2];
                }
            }
            tile_accumulate<T, D, BQ>(dk, p, queries);
        }
    }
    T* out = dqkv + tile.start * width;
    tile_store<T, D>(dk, scale, scale, out + k_column, width, tile.first + own, tile.len);
    tile_store<T, D>(dv, 1.0f, 1.0f, out + v_column, width, tile.first + own, tile.len);
}

// Tiles are those of attention/cuda.rs: 128 queries forward, 64 backward; two blocks share a multiprocessor.
#define KERNEL(D, name, T)                                                                                    \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_mma_forward_##D##_##name(                  \
        const T* qkv, const int* tiles, i64 rows, i64 heads, i64 kv_heads, i64 window, T* o, float* lse) {    \
        attention_mma_forward<T, D, 4, 2, 64>(                                                                \
            qkv, tiles, rows, (int)heads, (int)kv_heads, (int)window, o, lse);                                \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_mma_backward_q_##D##_##name(               \
        const T* do_, const T* qkv, const float* lse, const float* delta, const int* tiles, i64 rows,         \
        i64 heads, i64 kv_heads, i64 window, T* dqkv) {                                                       \
        attention_mma_backward_q<T, D, 4, 64>(                                                                \
            do_, qkv, lse, delta, tiles, rows, (int)heads, (int)kv_heads, (int)window, dqkv);                 \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128, 2) attention_mma_backward_kv_##D##_##name(              \
        const T* do_, const T* qkv, const float* lse, const float* delta, const int* tiles, i64 rows,         \
        i64 heads, i64 kv_heads, i64 window, T* dqkv) {                                                       \
        attention_mma_backward_kv<T, D, 4, 64>(                                                               \
            do_, qkv, lse, delta, tiles, rows, (int)heads, (int)kv_heads, (int)window, dqkv);                 \
    }
KERNEL(64, f16, __half)
KERNEL(64, bf16, __nv_bfloat16)
KERNEL(128, f16, __half)
KERNEL(128, bf16, __nv_bfloat16)
#undef KERNEL

#endif
