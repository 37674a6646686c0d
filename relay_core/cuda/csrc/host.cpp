// bias_act on the host: the kernels' element functions in loops that a compiler vectorises, shared by threads.
#include "activation.h"
#include "relay_ops.h"

using namespace relay;

namespace {

template <class A>
ActParams<A> params(const double* numbers, int act = PIECEWISE, int from_output = 0) {
  return {act, from_output != 0, static_cast<A>(numbers[0]), static_cast<A>(numbers[1]), static_cast<A>(numbers[2])};
}

template <bool SMOOTH, class T, class A>
void row(T* out, const T* x, const T* b, int64_t b_step, const T* g, int64_t count, int order, const ActParams<A>& p) {
  auto bias = [&](int64_t i) { return b ? A(widen(b[i * b_step])) : A(0); };
  if (order == 0) {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i) narrow(out[i], bias_act<SMOOTH>(A(widen(x[i])), bias(i), p));
  } else {
#pragma omp simd
    for (int64_t i = 0; i < count; ++i)
      narrow(out[i], bias_act_grad<SMOOTH>(A(widen(g[i])), A(widen(x[i])), bias(i), order, p));
  }
}

template <class T>
int run_bias_act(T* out, const T* x, const T* b, const T* g, int64_t count, int64_t inner, int64_t size, int act, int order,
                 int from_output, const double* numbers) {
  using A = compute_t<T>;
  auto p = params<A>(numbers, act, from_output);
  constexpr int64_t RUN = 16384;
  bool along = b && inner == 1;  // the bias runs along memory
  int64_t length = !b ? least(RUN, count) : along ? size : least(inner, RUN), parts = !b || along ? 1 : ceil_div(inner, length);
  int64_t rows = !b ? ceil_div(count, length) : along ? count / size : count / inner * parts;
#pragma omp parallel for schedule(static) if (count > RUN)
  for (int64_t r = 0; r < rows; ++r) {
    int64_t begin = !b || along ? r * length : r / parts * inner + r % parts * length;
    int64_t end = least(begin + length, !b || along ? count : (r / parts + 1) * inner);
    const T* bias = !b || along ? b : b + r / parts % size;
    auto call = act == PIECEWISE ? row<false, T, A> : row<true, T, A>;
    call(out + begin, x + begin, bias, along, g ? g + begin : g, end - begin, order, p);
  }
  return OK;
}

}  // namespace

extern "C" {

int relay_ops_version(void) { return RELAY_OPS_VERSION; }
int relay_devices(void) { return 0; }
const char* relay_error(int) { return "arguments that the host library does not serve"; }

int relay_bias_act(void* out, const void* x, const void* b, const void* g, int dtype, int64_t count, int64_t inner,
                   int64_t size, int act, int order, int from_output, const double* numbers, void*) {
  if (order < 0 || order > 2 || act < PIECEWISE || act > SWISH || (from_output && act != PIECEWISE)) return BAD_ARGUMENT;
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return run_bias_act(static_cast<T*>(out), static_cast<const T*>(x), static_cast<const T*>(b), static_cast<const T*>(g),
                        count, inner, size, act, order, from_output, numbers);
  });
}
}
