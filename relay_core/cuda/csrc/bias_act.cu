// bias_act and its derivatives: one thread computes 16 bytes, bytes moved are the least possible (x once, result once, and
// for a derivative g once; b stays in the cache).
#include "activation.h"
#include "launch.h"

using namespace relay;

namespace {

// Fewer than 2^31 elements: a 64-bit division takes longer than the memory access that it is for.
template <class T, bool SMOOTH, bool GRAD>
__global__ void __launch_bounds__(THREADS)
    bias_act_packs(T* out, const T* x, const T* b, const T* g, uint32_t packs, uint32_t inner, uint32_t size, int order,
                   ActParams<compute_t<T>> p) {
  using A = compute_t<T>;
  constexpr int N = Pack<T>::size;
  bool same = inner % N == 0;  // one bias for the whole pack
  uint32_t step = gridDim.x * THREADS;  // at most 2^24, so that an index behind the end still fits
  for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < packs; i += step) {
    Pack<T> from = reinterpret_cast<const Pack<T>*>(x)[i], grad, to;
    if constexpr (GRAD) grad = reinterpret_cast<const Pack<T>*>(g)[i];
    uint32_t first = i * N;
    A bias = b && same ? A(widen(b[first / inner % size])) : A(0);
    RELAY_UNROLL
    for (int k = 0; k < N; ++k) {
      if (b && !same) bias = A(widen(b[(first + k) / inner % size]));
      if constexpr (GRAD) {
        narrow(to.at[k], bias_act_grad<SMOOTH>(A(widen(grad.at[k])), A(widen(from.at[k])), bias, order, p));
      } else {
        narrow(to.at[k], bias_act<SMOOTH>(A(widen(from.at[k])), bias, p));
      }
    }
    reinterpret_cast<Pack<T>*>(out)[i] = to;
  }
}

// What is left of a tensor behind its last whole pack; all of one that does not begin on 16 bytes, is larger or is float64.
template <class T, bool SMOOTH, bool GRAD>
__global__ void __launch_bounds__(THREADS)
    bias_act_single(T* out, const T* x, const T* b, const T* g, int64_t begin, int64_t count, int64_t inner, int64_t size,
                    int order, ActParams<compute_t<T>> p) {
  using A = compute_t<T>;
  int64_t step = static_cast<int64_t>(gridDim.x) * THREADS;
  for (int64_t i = begin + static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < count; i += step) {
    A bias = b ? A(widen(b[i / inner % size])) : A(0);
    if constexpr (GRAD) {
      narrow(out[i], bias_act_grad<SMOOTH>(A(widen(g[i])), A(widen(x[i])), bias, order, p));
    } else {
      narrow(out[i], bias_act<SMOOTH>(A(widen(x[i])), bias, p));
    }
  }
}

template <class T, bool SMOOTH, bool GRAD>
int run(T* out, const T* x, const T* b, const T* g, int64_t count, int64_t inner, int64_t size, int order,
        const ActParams<compute_t<T>>& p, cudaStream_t stream) {
  int64_t done = 0;
  if constexpr (sizeof(T) < 8) {
    bool whole = aligned(out) && aligned(x) && (!GRAD || aligned(g)) && count < (int64_t(1) << 31);
    int64_t packs = whole ? count / Pack<T>::size : 0;
    done = packs * Pack<T>::size;
    if (packs) {
      bias_act_packs<T, SMOOTH, GRAD><<<blocks_for(packs), THREADS, 0, stream>>>(
          out, x, b, g, static_cast<uint32_t>(packs), static_cast<uint32_t>(inner), static_cast<uint32_t>(size), order, p);
    }
  }
  if (done < count) {
    bias_act_single<T, SMOOTH, GRAD><<<blocks_for(count - done), THREADS, 0, stream>>>(out, x, b, g, done, count, inner,
                                                                                       size, order, p);
  }
  return launched();
}

}  // namespace

int relay_ops_version(void) { return RELAY_OPS_VERSION; }
int relay_devices(void) {
  int count = 0;
  cudaError_t status = cudaGetDeviceCount(&count);
  return status == cudaSuccess ? count : -static_cast<int>(status);
}
const char* relay_error(int status) {
  return status < 0 ? "arguments that the CUDA library does not serve" : cudaGetErrorString(static_cast<cudaError_t>(status));
}

int relay_bias_act(void* out, const void* x, const void* b, const void* g, int dtype, int64_t count, int64_t inner,
                   int64_t size, int act, int order, int from_output, const double* numbers, void* stream) {
  if (order < 0 || order > 2 || act < PIECEWISE || act > SWISH || (from_output && act != PIECEWISE)) return BAD_ARGUMENT;
  if (count == 0) return OK;
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    ActParams<A> p = {act, from_output != 0, static_cast<A>(numbers[0]), static_cast<A>(numbers[1]),
                      static_cast<A>(numbers[2])};
    auto call = act == PIECEWISE ? (order ? run<T, false, true> : run<T, false, false>)
                                 : (order ? run<T, true, true> : run<T, true, false>);
    return call(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(b), static_cast<const T*>(g), count,
                inner, size, order, p, on(stream));
  });
}
