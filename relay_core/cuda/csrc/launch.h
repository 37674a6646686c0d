// Launching: 256 threads a block, on the stream that is given, errors returned.
#pragma once
#include <cuda_runtime.h>

#include "relay_ops.h"
#include "types.h"

namespace relay {

constexpr int THREADS = 256;
constexpr int64_t MOST_BLOCKS = 1 << 16;  // kernels stride over the rest

inline int launched() { return static_cast<int>(cudaGetLastError()); }
inline cudaStream_t on(void* stream) { return static_cast<cudaStream_t>(stream); }
inline unsigned blocks_for(int64_t threads) {
  return static_cast<unsigned>(most<int64_t>(1, least(ceil_div(threads, THREADS), MOST_BLOCKS)));
}

}  // namespace relay
