// scale: x *= factor, one thread per value and stride.
#include "../cuda/common.cuh"

#define KERNEL(name, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(256) scale_##name(T* x, i64 len, float factor) {             \
        for (i64 i = thread_index(); i < len; i += thread_count()) x[i] = narrow<T>(wide(x[i]) * factor);     \
    }
FOR_DTYPES(KERNEL)
#undef KERNEL
