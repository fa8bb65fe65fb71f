// SPDX-License-Identifier: Apache-2.0
#include "bandwidth_baseline.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "arrays.h"
#include "cpu/bandwidth_baseline.h"
#include "cpu/instruction_set.h"

namespace mxadamax {
namespace {

using engine::Handle;
using engine::ParameterError;

// The arrays of an update, and the least time that moving them takes.
class ArraysToMove {
 public:
  ArraysToMove(const std::vector<py::object>& grads,
               const std::vector<std::vector<py::object>>& written,
               const std::vector<py::object>& copies, int threads,
               const std::vector<std::array<int, 6>>& passes)
      : held_(py::make_tuple(grads, written, copies)), threads_(threads) {
    if (threads < 1) throw std::invalid_argument("threads must be at least 1");
    if (grads.empty() || written.size() != grads.size() ||
        (!copies.empty() && copies.size() != grads.size())) {
      throw std::invalid_argument("grads, written and copies differ in length, or are empty");
    }
    states_ = static_cast<int>(written[0].size()) - 1;
    for (std::size_t i = 0; i < grads.size(); ++i) {
      if (written[i].size() != written[0].size() || states_ < 0 || states_ > max_states) {
        throw ParameterError(i, "expected a weight and 0 to 4 states, as many for each");
      }
      BaselineTensor tensor{};
      tensor.size = grads[i].attr("size").cast<std::int64_t>();
      const std::int64_t grad_bytes = copies.empty() ? 4 : 2;
      tensor.grad = data_of(grads[i], i, "gradient", tensor.size, grad_bytes);
      for (int k = 0; k <= states_; ++k) {
        tensor.written[k] = static_cast<float*>(
            data_of(written[i][k], i, k == 0 ? "weight" : "state", tensor.size, 4));
      }
      if (!copies.empty()) tensor.copy = data_of(copies[i], i, "copy", tensor.size, 2);
      tensors_.push_back(tensor);
    }
    for (const auto& [reads, divisions, roots, double_divisions, double_roots, in_order] : passes) {
      if (std::min({reads, divisions, roots, double_divisions, double_roots}) < 0 ||
          reads > states_ + 2) {
        throw std::invalid_argument(
            "passes must be counts, and read at most the gradient, the weight and the states");
      }
      passes_.push_back({reads, divisions, roots, double_divisions, double_roots, in_order != 0});
    }
  }

  void move() const {
    const py::gil_scoped_release release;
    bandwidth_baseline(tensors_, states_, passes_, threads_, cpu::chosen_instruction_set().name);
  }

 private:
  static void* data_of(const py::object& array, std::size_t i, const char* what, std::int64_t size,
                       std::int64_t bytes) {
    const Handle handle = array_of(array, i, what);
    const auto type = engine::dtype_numbered(engine::dtype_of(handle));
    if (!type || dtype_size(*type) != bytes) {
      throw ParameterError(
          i, std::string(what) + " must be of " + (bytes == 4 ? "float32" : "16 bits"));
    }
    if (array.attr("size").cast<std::int64_t>() != size) {
      throw ParameterError(i, std::string(what) + " differs from the gradient in size");
    }
    void* data = nullptr;
    engine::check(engine::api().MXNDArrayGetData(handle, &data));
    return data;
  }

  py::tuple held_;
  int threads_;
  int states_ = 0;
  std::vector<BaselineTensor> tensors_;
  std::vector<BaselinePass> passes_;
};

}  // namespace

void add_bandwidth_baseline(py::module_& m) {
  py::class_<ArraysToMove>(m, "BandwidthBaseline",
                           "What the memory allows: reads and writes the NDArrays of an update and "
                           "computes next to nothing but what is asked for. Spoils them.")
      .def(py::init<const std::vector<py::object>&, const std::vector<std::vector<py::object>>&,
                    const std::vector<py::object>&, int, const std::vector<std::array<int, 6>>&>(),
           py::arg("grads"), py::arg("written"), py::arg("copies"), py::arg("threads"),
           py::arg("passes"),
           "Take gradients, for each the weight and the states, and with 16-bit gradients a 16-bit "
           "copy of each weight. All must have been computed. Of each pass: how many arrays it "
           "reads, in this order, or 0 if it updates; then divisions and roots for each element, "
           "those in double precision, and whether "
           "squares are added in order.")
      .def("__call__", &ArraysToMove::move, "Move them once, in this thread's time.");
}

}  // namespace mxadamax
