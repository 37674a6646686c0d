// The element functions of bias_act: act(u), act'(u), act''(u) with u = x + b, gain and clamp around them.
#pragma once
#include "types.h"

namespace relay {

// relu and linear are the leaky ReLU with slopes 0 and 1: one code for the three, and the one that the networks use.
enum Act { PIECEWISE = 0, TANH = 1, SIGMOID = 2, ELU = 3, SELU = 4, SOFTPLUS = 5, SWISH = 6 };

template <class A>
struct ActParams {
  int act;
  bool from_output;  // the derivative's argument is the forward result, whose sign and size say all (PIECEWISE alone)
  A slope, gain, clamp;  // clamp: infinity for none
};

template <class A>
RELAY_HD A piecewise(A u, A slope) {
  return u < 0 ? (slope == 0 ? A(0) : slope * u) : u;  // NaN stays; slope 0 must not meet -infinity
}

template <class A>
RELAY_HD A sigmoid(A u) {
  return A(1) / (A(1) + exp(-u));
}

// Scaled exponential linear unit (Klambauer 2017, arXiv 1706.02515).
#define RELAY_SELU_SCALE 1.0507009873554804934193349852946
#define RELAY_SELU_ALPHA 1.6732632423543772848170429916717

template <class A>
RELAY_HD A smooth(int act, A u) {
  switch (act) {
    case TANH: return tanh(u);
    case SIGMOID: return sigmoid(u);
    case ELU: return u > 0 ? u : expm1(u);
    case SELU: return A(RELAY_SELU_SCALE) * (u > 0 ? u : A(RELAY_SELU_ALPHA) * expm1(u));
    case SOFTPLUS: return (u < 0 ? A(0) : u) + log1p(exp(u < 0 ? u : -u));
    default: return u * sigmoid(u);
  }
}

template <class A>
RELAY_HD A smooth_first(int act, A u) {
  switch (act) {
    case TANH: { A t = tanh(u); return A(1) - t * t; }
    case SIGMOID: { A s = sigmoid(u); return s * (A(1) - s); }
    case ELU: return u > 0 ? A(1) : exp(u);
    case SELU: return A(RELAY_SELU_SCALE) * (u > 0 ? A(1) : A(RELAY_SELU_ALPHA) * exp(u));
    case SOFTPLUS: return sigmoid(u);
    default: { A s = sigmoid(u); return s * (A(1) + u * (A(1) - s)); }
  }
}

template <class A>
RELAY_HD A smooth_second(int act, A u) {
  switch (act) {
    case TANH: { A t = tanh(u); return A(-2) * t * (A(1) - t * t); }
    case SIGMOID: { A s = sigmoid(u); return s * (A(1) - s) * (A(1) - A(2) * s); }
    case ELU: return u > 0 ? A(0) : exp(u);
    case SELU: return u > 0 ? A(0) : A(RELAY_SELU_SCALE * RELAY_SELU_ALPHA) * exp(u);
    case SOFTPLUS: { A s = sigmoid(u); return s * (A(1) - s); }
    default: { A s = sigmoid(u); return s * (A(1) - s) * (A(2) + u * (A(1) - A(2) * s)); }
  }
}

template <class A>
RELAY_HD A bounded(A v, A clamp) {
  return v > clamp ? clamp : (v < -clamp ? -clamp : v);  // NaN stays
}

// Whether a derivative passes the clamp. On the bound itself the forward result cannot tell; there it does not pass.
template <class A>
RELAY_HD bool passes(A v, A clamp, bool from_output) {
  A size = v < 0 ? -v : v;
  return clamp - clamp != 0 /* infinite: none */ || size < clamp || (!from_output && size == clamp);
}

template <bool SMOOTH, class A>
RELAY_HD A bias_act(A x, A b, const ActParams<A>& p) {
  A u = x + b;
  return bounded(p.gain * (SMOOTH ? smooth(p.act, u) : piecewise(u, p.slope)), p.clamp);
}

// g times the derivative of order 1 or 2.
template <bool SMOOTH, class A>
RELAY_HD A bias_act_grad(A g, A x, A b, int order, const ActParams<A>& p) {
  A u = p.from_output ? x : x + b;
  A v = p.from_output ? x : p.gain * (SMOOTH ? smooth(p.act, u) : piecewise(u, p.slope));
  A d;
  if (SMOOTH) {
    d = order == 1 ? smooth_first(p.act, u) : smooth_second(p.act, u);
  } else {
    d = order == 1 ? (u > 0 ? A(1) : p.slope) : A(0);
  }
  return passes(v, p.clamp, p.from_output) ? g * (p.gain * d) : A(0);
}

}  // namespace relay
