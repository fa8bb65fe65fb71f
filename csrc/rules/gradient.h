// What every rule does to a gradient before its own mathematics begins.
//
// Headers in this folder are compiled by the C++ compiler and by nvcc alike. They hold scalar code
// without state, branches on data only where the compiler can turn them into selections, and keep
// the order of operations of MXNet's own `step` methods: that order, with no contraction of
// a * b + c, is what makes the results equal to the last bit.
#pragma once

// Always inlined: one header is compiled for several instruction sets into one library, and an
// out-of-line copy made for the widest of them must never be what the linker keeps for all.
#if defined(__CUDACC__)
#define MXADAMAX_RULE __host__ __device__ __forceinline__
#else
#define MXADAMAX_RULE inline __attribute__((always_inline))
#endif

namespace mxadamax {

// clip(grad * rescale_grad, -clip_gradient, clip_gradient) + wd * weight
//
// No clipping is clip_gradient = infinity. NaN passes.
template <class Scalars, class T>
MXADAMAX_RULE T prepared_gradient(const Scalars& s, T grad, T weight) {
  T g = grad * s.rescale_grad;
  g = g > s.clip_gradient ? s.clip_gradient : (g < -s.clip_gradient ? -s.clip_gradient : g);
  return g + s.wd * weight;
}

// The larger of two; NaN if either is.
template <class T>
MXADAMAX_RULE T maximum(T a, T b) {
  return a != a ? a : (a > b ? a : b);
}

template <class T>
MXADAMAX_RULE T absolute(T a) {
  return __builtin_fabs(a);
}
MXADAMAX_RULE float absolute(float a) { return __builtin_fabsf(a); }

}  // namespace mxadamax
