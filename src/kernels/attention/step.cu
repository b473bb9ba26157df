// attention_step: for at most 8 new rows of one text, rotates q and k, appends k and v to the caches and attends, in one
// launch. head_dim 64 or 128. The place of the rows in the text is read on the device (positions[0]), so that a recorded
// launch serves every step.
//
// One block of 4 warps per key head and 64 cached rows; it serves all query heads of the group and all new rows, so keys
// and values are read once. The block whose rows a new key falls into writes it, and no other block reads it. A lane holds 8
// columns of a key. Blocks leave maximum, sum and weighted values in `partial`; the last of a key head to arrive (a counter
// that it sets back to 0) adds them up in the order of the keys: the same bits whoever is last.
#include "../cuda/common.cuh"

#define STEP_KEYS 64
#define STEP_WARPS 4
#define STEP_HEADS 4 // query heads at a time

struct StepArgs {
    const void* qkv;
    const int* positions;
    const float* table; // (positions, 2, head_dim / 2): cosines, sines, as rope_table_f32 makes it
    void* keys;
    void* values;
    float* partial;     // (splits, rows, heads, head_dim)
    float* stats;       // (splits, rows, heads, 2): maximum, sum
    u32* arrived;       // one per key head, all 0
    void* o;
    i64 rows, heads, kv_heads, window;
};

template <class T> struct Eight {
    Pack<T> pack[8 / Pack<T>::N];
    __device__ __forceinline__ void load(const T* from) {
#pragma unroll
        for (int p = 0; p < 8 / Pack<T>::N; ++p) pack[p] = Pack<T>::load(from + p * Pack<T>::N);
    }
    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int i = 0; i < 8; ++i) pack[i / Pack<T>::N].value[i % Pack<T>::N] = narrow<T>(0.0f);
    }
    __device__ __forceinline__ float at(int i) const { return wide(pack[i / Pack<T>::N].value[i % Pack<T>::N]); }
};

// The pair (j, j + DIM / 2) of a head, rotated to `position` and rounded, as rope_rotate does.
template <class T, int DIM>
__device__ __forceinline__ void step_rotate(const T* head, const float* table, i64 position, int j, T& first, T& second) {
    const float cosine = table[position * DIM + j], sine = table[position * DIM + DIM / 2 + j];
    const float p = wide(head[j]), q = wide(head[j + DIM / 2]);
    first = narrow<T>(p * cosine - q * sine);
    second = narrow<T>(q * cosine + p * sine);
}

template <class T, int DIM> __device__ __forceinline__ void attention_step(const StepArgs& args) {
    constexpr int LANES = DIM / 8, PER_WARP = 32 / LANES, OWN = STEP_KEYS / STEP_WARPS, ROUNDS = OWN / PER_WARP;
    constexpr int THREADS = 32 * STEP_WARPS;
    __shared__ float query[STEP_HEADS][DIM], weights[STEP_HEADS][STEP_KEYS];
    __shared__ float sums[STEP_WARPS][STEP_HEADS][DIM], highest[STEP_HEADS], totals[STEP_HEADS];
    __shared__ bool is_last;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, part = lane % LANES, sub = lane / LANES;
    const i64 rows = args.rows, heads = args.heads, kv_heads = args.kv_heads, group = heads / kv_heads;
    const i64 kv_head = blockIdx.x % kv_heads, split = blockIdx.x / kv_heads;
    allow_next();
    wait_for_previous();
    const i64 start = args.positions[0], end = start + rows; // the new rows' positions
    const i64 oldest = args.window > 0 && start + 1 > args.window ? start + 1 - args.window : 0;
    const i64 first_split = oldest / STEP_KEYS, last_split = (end - 1) / STEP_KEYS;
    if (split < first_split || split > last_split) return;
    const i64 base = split * STEP_KEYS, width = (heads + 2 * kv_heads) * DIM, row_stride = kv_heads * DIM;
    const T* qkv = (const T*)args.qkv;
    T* keys = (T*)args.keys + kv_head * DIM;
    T* values = (T*)args.values + kv_head * DIM;

    // the keys there are already; no other block writes them
    Eight<T> own_keys[ROUNDS], own_values[ROUNDS];
#pragma unroll
    for (int i = 0; i < ROUNDS; ++i) {
        const i64 position = base + warp * OWN + i * PER_WARP + sub;
        own_keys[i].clear();
        own_values[i].clear();
        if (position < start) {
            own_keys[i].load(keys + position * row_stride + part * 8);
            own_values[i].load(values + position * row_stride + part * 8);
        }
    }
    if (start + rows > base && start < base + STEP_KEYS) {
        for (i64 r = 0; r < rows; ++r) {
            const i64 position = start + r;
            if (position < base || position >= base + STEP_KEYS) continue;
            const T* k = qkv + r * width + (heads + kv_head) * DIM;
            const T* v = k + kv_heads * DIM;
            for (int j = threadIdx.x; j < DIM; j += THREADS) {
                if (j < DIM / 2) {
                    T first, second;
                    step_rotate<T, DIM>(k, args.table, position, j, first, second);
                    keys[position * row_stride + j] = first;
                    keys[position * row_stride + j + DIM / 2] = second;
                }
                values[position * row_stride + j] = v[j];
            }
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < ROUNDS; ++i) {
            const i64 position = base + warp * OWN + i * PER_WARP + sub;
            if (position >= start && position < end) {
                own_keys[i].load(keys + position * row_stride + part * 8);
                own_values[i].load(values + position * row_stride + part * 8);
            }
        }
    }

    const bool is_alone = first_split == last_split;
    const float scale = rsqrtf((float)DIM);
    for (i64 r = 0; r < rows; ++r) {
        const i64 position = start + r;
        const i64 begin = args.window > 0 && position + 1 > args.window ? position + 1 - args.window : 0;
        for (i64 head = 0; head < group; head += STEP_HEADS) {
            const T* q = qkv + r * width + (kv_head * group + head) * DIM;
            const int count = (int)(group - head < STEP_HEADS ? group - head : STEP_HEADS);
            for (int i = threadIdx.x; i < count * (DIM / 2); i += THREADS) {
                const int h = i / (DIM / 2), j = i % (DIM / 2);
                T first, second;
                step_rotate<T, DIM>(q + h * DIM, args.table, position, j, first, second);
                query[h][j] = wide(first) * scale;
                query[h][j + DIM / 2] = wide(second) * scale;
            }
            __syncthreads();
            for (int h = 0; h < count; ++h) {
                float own_query[8];
#pragma unroll
                for (int d = 0; d < 8; ++d) own_query[d] = query[h][part * 8 + d];
#pragma unroll
                for (int i = 0; i < ROUNDS; ++i) {
                    const int key = warp * OWN + i * PER_WARP + sub;
                    const bool is_seen = base + key >= begin && base + key <= position;
                    float score = 0.0f;
#pragma unroll
                    for (int d = 0; d < 8; ++d) score += own_keys[i].at(d) * own_query[d];
#pragma unroll
                    for (int step = LANES / 2; step > 0; step >>= 1) {
                        score += __shfl_xor_sync(0xffffffffu, score, step);
                    }
                    if (part == 0) weights[h][key] = is_seen ? score : -INFINITY_F;
                }
            }
            __syncthreads();
            for (int h = warp; h < count; h += STEP_WARPS) {
                const float one = weights[h][lane], other = weights[h][lane + 32];
                const float most = warp_max(fmaxf(one, other));
                // no key of these is seen: weights of 0
                const float p = one == -INFINITY_F ? 0.0f : expf(one - most);
                const float q_ = other == -INFINITY_F ? 0.0f : expf(other - most);
                const float total = warp_sum(p + q_);
                weights[h][lane] = p;
                weights[h][lane + 32] = q_;
                if (lane == 0) {
                    highest[h] = most;
                    totals[h] = total;
                }
            }
            __syncthreads();
            for (int h = 0; h < count; ++h) {
                float added[8] = {};
#pragma unroll
                for (int i = 0; i < ROUNDS; ++i) {
                    const float weight = weights[h][warp * OWN + i * PER_WARP + sub];
#pragma unroll
                    for (int d = 0; d < 8; ++d) added[d] += weight * own_values[i].at(d);
                }
#pragma unroll
                for (int d = 0; d < 8; ++d) {
#pragma unroll
                    for (int step = LANES; step < 32; step <<= 1) {
                        added[d] += __shfl_xor_sync(0xffffffffu, added[d], step);
                    }
                    if (sub == 0) sums[warp][h][part * 8 + d] = added[d];
                }
            }
            __syncthreads();
            for (int i = threadIdx.x; i < count * DIM; i += THREADS) {
                const int h = i / DIM, d = i % DIM;
                float sum = 0.0f;
#pragma unroll
                for (int w = 0; w < STEP_WARPS; ++w) sum += sums[w][h][d];
                const i64 place = r * heads + kv_head * group + head + h;
                if (is_alone) {
                    ((T*)args.o)[place * DIM + d] = narrow<T>(sum / totals[h]);
                } else {
                    const i64 at = split * rows * heads + place;
                    args.partial[at * DIM + d] = sum;
                    if (d == 0) {
                        args.stats[2 * at] = highest[h];
                        args.stats[2 * at + 1] = totals[h];
                    }
                }
            }
        }
    }
    if (is_alone) return;

    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) is_last = atomicAdd(args.arrived + kv_head, 1u) == (u32)(last_split - first_split);
    __syncthreads();
    if (!is_last) return;
    __threadfence();
    // a thread takes four columns; its loads do not wait for each other
    const i64 stride = rows * heads;
    for (i64 i = threadIdx.x; i < rows * group * (DIM / 4); i += THREADS) {
        const i64 d = i % (DIM / 4) * 4, place = i / (DIM / 4) / group * heads + kv_head * group + i / (DIM / 4) % group;
        float most = -INFINITY_F;
#pragma unroll 8
        for (i64 s = first_split; s <= last_split; ++s) most = fmaxf(most, __ldcg(args.stats + 2 * (s * stride + place)));
        float sum[4] = {}, total = 0.0f;
#pragma unroll 8
        for (i64 s = first_split; s <= last_split; ++s) {
            const i64 at = s * stride + place;
            const float2 stats = __ldcg(reinterpret_cast<const float2*>(args.stats) + at);
            const float4 part = __ldcg(reinterpret_cast<const float4*>(args.partial + at * DIM + d));
            const float keep = expf(stats.x - most);
            sum[0] += keep * part.x;
            sum[1] += keep * part.y;
            sum[2] += keep * part.z;
            sum[3] += keep * part.w;
            total += keep * stats.y;
        }
#pragma unroll
        for (int n = 0; n < 4; ++n) ((T*)args.o)[place * DIM + d + n] = narrow<T>(sum[n] / total);
    }
    if (threadIdx.x == 0) args.arrived[kv_head] = 0;
}

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(128) attention_step_64_##name(                               \
        const __grid_constant__ StepArgs args) {                                                              \
        attention_step<T, 64>(args);                                                                          \
    }                                                                                                         \
    extern "C" __global__ void __launch_bounds__(128) attention_step_128_##name(                              \
        const __grid_constant__ StepArgs args) {                                                              \
        attention_step<T, 128>(args);                                                                         \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
