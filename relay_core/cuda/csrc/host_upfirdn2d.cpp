// upfirdn2d on the host: row by row, down the columns first, then along the row, phase by phase, so that every inner loop
// runs along memory with stride one whatever the factors.
#include <limits>
#include <numeric>
#include <vector>

#include "relay_ops.h"
#include "upfirdn2d.h"

using namespace relay;

namespace {

struct Tap {  // out[out_phase + j * step_out] += f * in[in_phase + (first + j) * step_in]
  int64_t out_phase, in_phase, first, kx;
};

struct Phases {  // along x: an output column meets a tap where up divides; both sides split into phases
  int64_t outs, ins, margin, in_length, out_length;
  std::vector<std::vector<Tap>> taps;  // by out_phase
  explicit Phases(const Resample& s) {
    int64_t common = std::gcd(s.ux, s.dx);
    outs = s.ux / common, ins = s.dx / common, margin = 0;
    out_length = ceil_div(ceil_div(s.ow, outs), 8) * 8;  // whole vectors: what lies behind a row is read and forgotten
    int64_t farthest = 0;
    taps.resize(outs);
    for (int64_t kx = 0; kx < s.fw; ++kx) {
      for (int64_t o = 0; o < outs; ++o) {
        int64_t at = o * s.dx + kx - s.px;
        if (modulo(at, s.ux) != 0) continue;
        int64_t ix = floor_div(at, s.ux), first = floor_div(ix, ins);
        taps[o].push_back({o, modulo(ix, ins), first, kx});
        margin = most(margin, -first);
        farthest = most(farthest, first + out_length);
      }
    }
    in_length = margin + most(farthest, ceil_div(s.w, ins));
  }
};

// to[j] (+)= sum over t of f[t] * from[t][j], N terms in one loop.
template <int N, class T, class A>
void add(A* to, const T* const* from, const A* f, int64_t count, bool onto) {
  if (onto) {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      A sum = to[j];
      for (int t = 0; t < N; ++t) sum += f[t] * widen(from[t][j]);
      to[j] = sum;
    }
  } else {
#pragma omp simd
    for (int64_t j = 0; j < count; ++j) {
      A sum = 0;
      for (int t = 0; t < N; ++t) sum += f[t] * widen(from[t][j]);
      to[j] = sum;
    }
  }
}

template <class T, class A>
void add(A* to, const T* const* from, const A* f, int64_t count, int64_t terms, bool onto) {
  for (int64_t t = 0; t < terms; onto = true) {
    switch (terms - t) {
      case 1: add<1>(to, from + t, f + t, count, onto), t += 1; break;
      case 2: add<2>(to, from + t, f + t, count, onto), t += 2; break;
      case 3: add<3>(to, from + t, f + t, count, onto), t += 3; break;
      case 4:
      case 5: add<4>(to, from + t, f + t, count, onto), t += 4; break;
      default: add<6>(to, from + t, f + t, count, onto), t += 6;
    }
  }
}

// A filter as a sum of (column) x (row): one term when it is an outer product, else one for each of its rows.
template <class A>
struct Terms {
  std::vector<std::vector<A>> columns, rows;  // flipped as needed: correlation
  Terms(const Resample& s, const A* f, A gain) {
    auto at = [&](int64_t y, int64_t x) {
      y = s.flip ? y : s.fh - 1 - y, x = s.flip ? x : s.fw - 1 - x;
      return s.separable ? f[y] * f[x] * gain : f[y * s.fw + x] * gain;
    };
    int64_t py = 0, px = 0;
    for (int64_t y = 0; y < s.fh; ++y)
      for (int64_t x = 0; x < s.fw; ++x)
        if (std::abs(at(y, x)) > std::abs(at(py, px))) py = y, px = x;
    A peak = at(py, px), error = 0;
    std::vector<A> column, row;
    for (int64_t y = 0; y < s.fh; ++y) column.push_back(peak == 0 ? A(0) : at(y, px) / peak);
    for (int64_t x = 0; x < s.fw; ++x) row.push_back(at(py, x));
    for (int64_t y = 0; y < s.fh; ++y)
      for (int64_t x = 0; x < s.fw; ++x) error = most(error, A(std::abs(at(y, x) - column[y] * row[x])));
    if (s.separable || error <= 4 * std::numeric_limits<A>::epsilon() * std::abs(peak)) {
      columns.push_back(column), rows.push_back(row);
      return;
    }
    for (int64_t y = 0; y < s.fh; ++y) {
      columns.emplace_back(s.fh, A(0)), rows.emplace_back();
      columns.back()[y] = 1;
      for (int64_t x = 0; x < s.fw; ++x) rows.back().push_back(at(y, x));
    }
  }
};

// Along one axis: the input lines under each output line, with their taps, for one term. The same for every plane.
template <class A>
struct Lines {
  std::vector<int64_t> begin, at;
  std::vector<A> tap;
  Lines(const std::vector<A>& taps, int64_t out, int64_t in, int64_t up, int64_t down, int64_t pad) {
    for (int64_t o = 0; o < out; ++o) {
      begin.push_back(static_cast<int64_t>(at.size()));
      int64_t k = modulo(pad - o * down, up), i = floor_div(o * down + k - pad, up);
      for (; k < static_cast<int64_t>(taps.size()); k += up, ++i) {
        if (i >= 0 && i < in && taps[k] != 0) at.push_back(i), tap.push_back(taps[k]);
      }
    }
    begin.push_back(static_cast<int64_t>(at.size()));
  }
};

template <class A>
std::vector<Lines<A>> down_lines(const Resample& s, const Terms<A>& terms) {
  std::vector<Lines<A>> lines;
  for (const auto& taps : terms.columns) lines.emplace_back(taps, s.oh, s.h, s.uy, s.dy, s.py);
  return lines;
}

template <class T>
struct Row {  // one thread's buffers
  using A = compute_t<T>;
  const Resample& s;
  const Phases& p;
  const std::vector<Lines<A>>& lines;
  std::vector<A> column, split, acc;
  std::vector<const T*> rows;
  std::vector<std::vector<const A*>> from;  // by out phase: where each tap reads
  std::vector<std::vector<std::vector<A>>> taps;
  Row(const Resample& s, const Phases& p, const Terms<A>& terms, const std::vector<Lines<A>>& lines)
      : s(s), p(p), lines(lines), column(s.w), split(p.ins * p.in_length), acc(p.outs * p.out_length), rows(s.fh),
        from(p.outs), taps(terms.rows.size(), std::vector<std::vector<A>>(p.outs)) {
    for (int64_t o = 0; o < p.outs; ++o) {
      for (const Tap& tap : p.taps[o]) {
        from[o].push_back(split.data() + tap.in_phase * p.in_length + p.margin + tap.first);
        for (size_t term = 0; term < taps.size(); ++term) taps[term][o].push_back(terms.rows[term][tap.kx]);
      }
    }
  }

  // Sums down the columns of the input rows under one output row, split into phases; false if all of them are zero.
  bool down(const T* x, const Lines<A>& line, int64_t oy) {
    int64_t begin = line.begin[oy], count = line.begin[oy + 1] - begin;
    A* to = p.ins == 1 ? split.data() + p.margin : column.data();
    if (count == 0) return false;
    for (int64_t t = 0; t < count; ++t) rows[t] = x + line.at[begin + t] * s.xs[2];
    if (s.xs[3] == 1) {
      add(to, rows.data(), line.tap.data() + begin, s.w, count, false);
    } else {
      for (int64_t i = 0; i < s.w; ++i) {
        to[i] = 0;
        for (int64_t t = 0; t < count; ++t) to[i] += line.tap[begin + t] * widen(rows[t][i * s.xs[3]]);
      }
    }
    for (int64_t phase = 0; p.ins > 1 && phase < p.ins; ++phase) {
      A* into = split.data() + phase * p.in_length + p.margin;
      const A* at = column.data() + phase;
      int64_t count = ceil_div(s.w - phase, p.ins);
      if (p.ins == 2) {  // a constant stride becomes shuffles
#pragma omp simd
        for (int64_t k = 0; k < count; ++k) into[k] = at[2 * k];
      } else {
        for (int64_t k = 0; k < count; ++k) into[k] = at[k * p.ins];
      }
    }
    return true;
  }

  void operator()(T* y, const T* x, int64_t oy) {
    bool any = false;
    for (size_t term = 0; term < taps.size(); ++term) {
      if (!down(x, lines[term], oy)) continue;
      for (int64_t o = 0; o < p.outs; ++o) {
        const auto& f = taps[term][o];
        A* to = acc.data() + o * p.out_length;
        if (f.empty() && !any) std::fill(to, to + p.out_length, A(0));
        add(to, from[o].data(), f.data(), p.out_length, static_cast<int64_t>(f.size()), any);
      }
      any = true;
    }
    if (!any) std::fill(acc.begin(), acc.end(), A(0));
    if (p.outs == 2 && s.ys[3] == 1) {  // both phases at once: whole stores
      const A *even = acc.data(), *odd = even + p.out_length;
      int64_t pairs = s.ow / 2;
#pragma omp simd
      for (int64_t j = 0; j < pairs; ++j) {
        narrow(y[2 * j], even[j]);
        narrow(y[2 * j + 1], odd[j]);
      }
      if (s.ow % 2) narrow(y[s.ow - 1], even[pairs]);
      return;
    }
    for (int64_t o = 0; o < p.outs; ++o) {
      const A* sums = acc.data() + o * p.out_length;
      for (int64_t j = 0; o + j * p.outs < s.ow; ++j) narrow(y[(o + j * p.outs) * s.ys[3]], sums[j]);
    }
  }
};

template <class T>
int run(T* y, const T* x, const compute_t<T>* f, const Resample& s, double gain) {
  using A = compute_t<T>;
  Phases phases(s);
  Terms<A> terms(s, f, static_cast<A>(gain));
  auto lines = down_lines(s, terms);
  int64_t planes = s.n * s.c;
#pragma omp parallel if (planes * s.oh * s.ow > 16384)
  {
    Row<T> row(s, phases, terms, lines);
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < planes; ++plane) {
      const T* from = x + plane / s.c * s.xs[0] + plane % s.c * s.xs[1];
      T* to = y + plane / s.c * s.ys[0] + plane % s.c * s.ys[1];
      for (int64_t oy = 0; oy < s.oh; ++oy) row(to + oy * s.ys[2], from, oy);
    }
  }
  return OK;
}

}  // namespace

int relay_upfirdn2d(void* y, const void* x, const void* f, int dtype, const int64_t* sizes, double gain, void*) {
  Resample s(sizes);
  return with_type(dtype, [&](auto* null) {
    using T = std::remove_pointer_t<decltype(null)>;
    return run(static_cast<T*>(y), static_cast<const T*>(x), static_cast<const compute_t<T>*>(f), s, gain);
  });
}
