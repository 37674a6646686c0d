// upfirdn2d: blocks in shared memory for contiguous images and the filters of the networks, packs of channels for
// channels-last images, pixel by pixel for all else.
#include "launch.h"
#include "upfirdn2d.h"

using namespace relay;

namespace {

constexpr int64_t SHARED = 32 << 10;  // bytes a block: several fit on a multiprocessor, none needs a larger carve-out

template <class T>
__global__ void __launch_bounds__(THREADS)
    upfirdn2d_pixels(T* y, const T* x, const compute_t<T>* f, Resample s, compute_t<T> gain, int64_t count) {
  int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step)
    resample_pixel(y, x, f, s, gain, i);
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    upfirdn2d_packs(T* y, const T* x, const compute_t<T>* f, Resample s, compute_t<T> gain, int64_t packs) {
  int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < packs; i += step)
    resample_pack(y, x, f, s, gain, i);
}

template <class T, int U, int D, int TAPS, bool SEP>
__global__ void __launch_bounds__(THREADS)
    upfirdn2d_blocks(T* y, const T* x, const float* f, Resample s, Bands b, float gain) {
  extern __shared__ __align__(16) unsigned char shared[];
  for (int64_t index = blockIdx.x; index < b.blocks; index += gridDim.x) {
    Block<T, U, D, TAPS, SEP> block(s, b, index, shared);
    block.load(x, f, threadIdx.x, THREADS);
    __syncthreads();
    if constexpr (SEP) {
      block.across(threadIdx.x, THREADS);
      __syncthreads();
    }
    block.down(gain, threadIdx.x, THREADS);
    __syncthreads();
    block.store(y, threadIdx.x, THREADS);
    __syncthreads();
  }
}

template <class T, int U, int D, int TAPS, bool SEP>
bool launch(Block<T, U, D, TAPS, SEP>*, T* y, const T* x, const float* f, const Resample& s, float gain,
            cudaStream_t stream) {
  Bands b;
  if (!Block<T, U, D, TAPS, SEP>::plan(s, SHARED, b)) return false;
  size_t bytes = static_cast<size_t>(Block<T, U, D, TAPS, SEP>::bytes(b));
  unsigned blocks = static_cast<unsigned>(least(b.blocks, int64_t(1) << 30));
  upfirdn2d_blocks<T, U, D, TAPS, SEP><<<blocks, THREADS, bytes, stream>>>(y, x, f, s, b, gain);
  return true;
}

}  // namespace

int relay_upfirdn2d(void* y, const void* x, const void* f, int dtype, const int64_t* sizes, double gain, void* stream) {
  Resample s(sizes);
  int64_t count = s.n * s.c * s.oh * s.ow;
  if (count == 0) return OK;
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    T* to = static_cast<T*>(y);
    const T* from = static_cast<const T*>(x);
    bool done = false;
    if constexpr (!std::is_same<T, double>::value) {
      done = aligned(to) && with_block<T>(s, [&](auto* kind) {
        return launch(kind, to, from, static_cast<const float*>(f), s, static_cast<float>(gain), on(stream));
      });
    }
    constexpr int N = Pack<T>::size;
    if (!done && s.last && s.c % N == 0 && aligned(to) && aligned(from)) {
      upfirdn2d_packs<<<blocks_for(count / N), THREADS, 0, on(stream)>>>(to, from, static_cast<const compute_t<T>*>(f), s,
                                                                         static_cast<compute_t<T>>(gain), count / N);
      done = true;
    }
    if (!done) {
      upfirdn2d_pixels<<<blocks_for(count), THREADS, 0, on(stream)>>>(to, from, static_cast<const compute_t<T>*>(f), s,
                                                                      static_cast<compute_t<T>>(gain), count);
    }
    return launched();
  });
}
