// The epilogue of a modulated convolution, its derivative and its second derivative, each in one pass over memory. A block
// takes a plane (n, c), or a part of a large one; the sums over its pixels are added up in a fixed order, without atomics.
#include "epilogue.h"
#include "launch.h"

using namespace relay;

namespace {

constexpr int64_t PART = 1 << 14;      // pixels a block of one plane
constexpr int64_t PART_LAST = 1 << 8;  // pixels a block of all channels

template <class T>
struct Args {
  using A = compute_t<T>;
  const A *scale, *strength, *bias;
  const T *y, *noise, *g, *v;
  const A* weights;
  T *out, *out_y;
  A* sums;
  int64_t planes, channels, pixels, noise_stride, parts;
  bool packs;  // every pointer and every plane begins on 16 bytes
  ActParams<A> p;
};

// One access of 16 bytes where V has as many; left to itself the compiler takes some of these apart.
template <class V, class T>
__device__ void put(T* to, const V& values) {
  if constexpr (sizeof(V) == 16) {
    __stcg(reinterpret_cast<int4*>(to), *reinterpret_cast<const int4*>(&values));
  } else {
    *reinterpret_cast<V*>(to) = values;
  }
}

template <class A>
__device__ A sum_of_block(A value, A* shared) {
  for (int lane = 16; lane > 0; lane /= 2) value += __shfl_down_sync(0xffffffffu, value, lane);
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (unsigned warp = 1; warp < blockDim.x / 32; ++warp) value += shared[warp];
  }
  __syncthreads();
  return value;
}

// STAGE 0: forward; 1: derivative; 2: second derivative. N elements at a time.
template <class T, int STAGE, int N>
__device__ void run_part(const Args<T>& a, int64_t plane, int64_t begin, int64_t end, const Plane<compute_t<T>>& q,
                         Sums<compute_t<T>>& sums) {
  using A = compute_t<T>;
  struct alignas(N > 1 ? 16 : sizeof(T)) Values {
    T at[N];
  };
  auto values = [](const T* p, int64_t i) { return *reinterpret_cast<const Values*>(p + i); };
  int64_t start = plane * a.pixels;
  const T* noise = a.noise ? a.noise + plane / a.channels * a.noise_stride : nullptr;
  Sums<A> w = {};
  if constexpr (STAGE == 2) w = {a.weights[plane], a.weights[a.planes + plane], a.weights[2 * a.planes + plane]};
  for (int64_t i = begin + threadIdx.x * N; i < end; i += blockDim.x * N) {
    Values y = values(a.y, start + i), added = {}, g = {}, v = {}, out, out_y;
    if (noise) added = values(noise, i);
    if constexpr (STAGE >= 1) g = values(a.g, start + i);
    if constexpr (STAGE == 2) v = values(a.v, start + i);
    RELAY_UNROLL
    for (int k = 0; k < N; ++k) {
      A yk = widen(y.at[k]), nk = noise ? A(widen(added.at[k])) : A(0);
      if constexpr (STAGE == 0) {
        narrow(out.at[k], epilogue(yk, nk, q, a.p));
      } else if constexpr (STAGE == 1) {
        narrow(out.at[k], epilogue_grad(A(widen(g.at[k])), yk, nk, q, a.p, sums));
      } else {
        auto second = epilogue_grad_grad(A(widen(v.at[k])), A(widen(g.at[k])), yk, nk, q, w, a.p, sums.scale);
        narrow(out.at[k], second.by_g);
        narrow(out_y.at[k], second.by_y);
      }
    }
    put(a.out + start + i, out);
    if constexpr (STAGE == 2) put(a.out_y + start + i, out_y);
  }
}

template <class T, int STAGE>
__global__ void __launch_bounds__(THREADS) epilogue_planes(Args<T> a) {
  using A = compute_t<T>;
  __shared__ A shared[THREADS / 32];
  for (int64_t block = blockIdx.x; block < a.planes * a.parts; block += gridDim.x) {
    int64_t plane = block / a.parts, part = block % a.parts;
    int64_t begin = part * PART, end = least(begin + PART, a.pixels);
    Plane<A> q = {a.scale ? a.scale[plane] : A(1), a.noise && a.strength ? *a.strength : A(1),
                  a.bias ? a.bias[plane % a.channels] : A(0)};
    Sums<A> sums = {};
    if (a.packs) {
      run_part<T, STAGE, Pack<T>::size>(a, plane, begin, end, q, sums);
    } else {
      run_part<T, STAGE, 1>(a, plane, begin, end, q, sums);
    }
    if constexpr (STAGE == 1) {
      A by_bias = sum_of_block(sums.bias, shared), by_scale = sum_of_block(sums.scale, shared);
      A by_strength = sum_of_block(sums.strength, shared);
      if (threadIdx.x == 0) {
        A* into = a.sums + 3 * part * a.planes + plane;
        into[0] = by_bias, into[a.planes] = by_scale, into[2 * a.planes] = by_strength;
      }
    } else if constexpr (STAGE == 2) {
      A by_scale = sum_of_block(sums.scale, shared);
      if (threadIdx.x == 0) a.sums[part * a.planes + plane] = by_scale;
    }
  }
}

// Channels-last: a thread keeps its channels (one pack of them, or one) and walks over every `rows`-th pixel of the block's
// part; the sums of the rows are added up in order.
template <class T, int STAGE, int N>
__global__ void __launch_bounds__(THREADS) epilogue_last(Args<T> a, int columns, int groups) {
  using A = compute_t<T>;
  constexpr int SUMS = STAGE == 0 ? 0 : STAGE == 1 ? 3 : 1;
  struct alignas(N > 1 ? 16 : sizeof(T)) Values {
    T at[N];
  };
  __shared__ A shared[SUMS ? SUMS * THREADS * N : 1];
  int column = threadIdx.x % columns, row = threadIdx.x / columns, rows = THREADS / columns;
  int64_t blocks = a.planes / a.channels * a.parts * groups;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    int64_t group = block % groups, part = block / groups % a.parts, n = block / groups / a.parts;
    int64_t c = (group * columns + column) * N, begin = part * PART_LAST, end = least(begin + PART_LAST, a.pixels);
    bool busy = row < rows && c < a.channels;
    Plane<A> q[N];
    Sums<A> w[N] = {}, sums[N] = {};
    for (int k = 0; busy && k < N; ++k) {
      int64_t plane = n * a.channels + c + k;
      q[k] = {a.scale ? a.scale[plane] : A(1), a.noise && a.strength ? *a.strength : A(1), a.bias ? a.bias[c + k] : A(0)};
      if constexpr (STAGE == 2) w[k] = {a.weights[plane], a.weights[a.planes + plane], a.weights[2 * a.planes + plane]};
    }
    for (int64_t i = begin + row; busy && i < end; i += rows) {
      int64_t at = (n * a.pixels + i) * a.channels + c;
      A added = a.noise ? A(widen(a.noise[n * a.noise_stride + i])) : A(0);
      Values y = *reinterpret_cast<const Values*>(a.y + at), g = {}, v = {}, out, out_y;
      if constexpr (STAGE >= 1) g = *reinterpret_cast<const Values*>(a.g + at);
      if constexpr (STAGE == 2) v = *reinterpret_cast<const Values*>(a.v + at);
      RELAY_UNROLL
      for (int k = 0; k < N; ++k) {
        A yk = widen(y.at[k]);
        if constexpr (STAGE == 0) {
          narrow(out.at[k], epilogue(yk, added, q[k], a.p));
        } else if constexpr (STAGE == 1) {
          narrow(out.at[k], epilogue_grad(A(widen(g.at[k])), yk, added, q[k], a.p, sums[k]));
        } else {
          auto second = epilogue_grad_grad(A(widen(v.at[k])), A(widen(g.at[k])), yk, added, q[k], w[k], a.p, sums[k].scale);
          narrow(out.at[k], second.by_g);
          narrow(out_y.at[k], second.by_y);
        }
      }
      put(a.out + at, out);
      if constexpr (STAGE == 2) put(a.out_y + at, out_y);
    }
    if constexpr (STAGE > 0) {
      for (int k = 0; busy && k < N; ++k) {
        A values[3] = {STAGE == 1 ? sums[k].bias : sums[k].scale, sums[k].scale, sums[k].strength};
        for (int kind = 0; kind < SUMS; ++kind) shared[(kind * rows + row) * columns * N + column * N + k] = values[kind];
      }
      __syncthreads();
      for (int i = threadIdx.x; i < SUMS * columns * N; i += THREADS) {
        int kind = i / (columns * N), at = i % (columns * N);
        int64_t channel = group * columns * N + at;
        A sum = 0;
        for (int r = 0; r < rows && channel < a.channels; ++r) sum += shared[(kind * rows + r) * columns * N + at];
        if (channel < a.channels) a.sums[(part * SUMS + kind) * a.planes + n * a.channels + channel] = sum;
      }
      __syncthreads();
    }
  }
}

template <int STAGE, class T>
int launch_last(Args<T> a, cudaStream_t stream) {
  a.parts = ceil_div(a.pixels, PART_LAST);
  bool packs = a.channels % Pack<T>::size == 0 && aligned(a.y) && aligned(a.g) && aligned(a.v) && aligned(a.out) &&
               aligned(a.out_y);
  int64_t needed = a.channels / (packs ? Pack<T>::size : 1);
  int columns = static_cast<int>(least<int64_t>(needed, THREADS)), groups = static_cast<int>(ceil_div(needed, columns));
  unsigned blocks = static_cast<unsigned>(least(a.planes / a.channels * a.parts * groups, int64_t(1) << 30));
  if (packs) {
    epilogue_last<T, STAGE, Pack<T>::size><<<blocks, THREADS, 0, stream>>>(a, columns, groups);
  } else {
    epilogue_last<T, STAGE, 1><<<blocks, THREADS, 0, stream>>>(a, columns, groups);
  }
  return launched();
}

template <int STAGE, class T>
int launch(Args<T> a, int last, cudaStream_t stream) {
  if (a.planes * a.pixels == 0) return OK;
  if (last) return launch_last<STAGE>(a, stream);
  a.parts = ceil_div(a.pixels, PART);
  a.packs = a.pixels % Pack<T>::size == 0 && a.noise_stride % Pack<T>::size == 0 && aligned(a.y) && aligned(a.noise) &&
            aligned(a.g) && aligned(a.v) && aligned(a.out) && aligned(a.out_y);
  int64_t work = least(a.pixels, PART) / (a.packs ? Pack<T>::size : 1);
  int threads = static_cast<int>(least<int64_t>(THREADS, most<int64_t>(32, ceil_div(work, 32) * 32)));
  unsigned blocks = static_cast<unsigned>(least(a.planes * a.parts, int64_t(1) << 30));
  epilogue_planes<T, STAGE><<<blocks, threads, 0, stream>>>(a);
  return launched();
}

template <class T>
Args<T> args(const void* y, const void* scale, const void* noise, const void* strength, const void* bias, int64_t planes,
             int64_t channels, int64_t pixels, int64_t noise_stride, const double* numbers) {
  using A = compute_t<T>;
  Args<T> a = {};
  a.y = static_cast<const T*>(y), a.noise = static_cast<const T*>(noise);
  a.scale = static_cast<const A*>(scale), a.strength = static_cast<const A*>(strength), a.bias = static_cast<const A*>(bias);
  a.planes = planes, a.channels = channels, a.pixels = pixels, a.noise_stride = noise_stride;
  a.p = {PIECEWISE, false, static_cast<A>(numbers[0]), static_cast<A>(numbers[1]), static_cast<A>(numbers[2])};
  return a;
}

}  // namespace

int64_t relay_epilogue_parts(int64_t pixels, int last) { return ceil_div(pixels, last ? PART_LAST : PART); }

int relay_epilogue(void* out, const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                   int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride, const double* numbers,
                   void* stream) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    auto a = args<T>(y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers);
    a.out = static_cast<T*>(out);
    return launch<0>(a, last, on(stream));
  });
}

int relay_epilogue_grad(void* gy, void* sums, const void* g, const void* y, const void* scale, const void* noise,
                        const void* strength, const void* bias, int dtype, int last, int64_t planes, int64_t channels, int64_t pixels,
                        int64_t noise_stride, const double* numbers, void* stream) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    auto a = args<T>(y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers);
    a.out = static_cast<T*>(gy), a.sums = static_cast<compute_t<T>*>(sums), a.g = static_cast<const T*>(g);
    return launch<1>(a, last, on(stream));
  });
}

int relay_epilogue_grad_grad(void* by_g, void* by_y, void* by_scale, const void* v, const void* weights, const void* g,
                             const void* y, const void* scale, const void* noise, const void* strength, const void* bias,
                             int dtype, int last, int64_t planes, int64_t channels, int64_t pixels, int64_t noise_stride,
                             const double* numbers, void* stream) {
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    using A = compute_t<T>;
    auto a = args<T>(y, scale, noise, strength, bias, planes, channels, pixels, noise_stride, numbers);
    a.out = static_cast<T*>(by_g), a.out_y = static_cast<T*>(by_y), a.sums = static_cast<A*>(by_scale);
    a.v = static_cast<const T*>(v), a.g = static_cast<const T*>(g), a.weights = static_cast<const A*>(weights);
    return launch<2>(a, last, on(stream));
  });
}
