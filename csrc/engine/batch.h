// The arrays of one update: checked, held, and pushed to MXNet's engine as one operation.
#pragma once

#include <atomic>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "cpu/chunks.h"
#include "cpu/instruction_set.h"
#include "cpu/update.h"
#include "mxnet.h"

namespace mxadamax::engine {

// What is wrong with one parameter of a batch. Where the message holds "{other}", it stands for the
// name of the parameter at position `other`.
struct ParameterError : std::runtime_error {
  ParameterError(std::size_t position, const std::string& message, std::size_t other = 0)
      : std::runtime_error(message), position(position), other(other) {}
  std::size_t position;
  std::size_t other;
};

struct Shape {
  static constexpr int most_dims = 32;
  int ndim = 0;
  std::int64_t dims[most_dims];

  explicit Shape(Handle array);
  bool operator==(const Shape& other) const;
  std::int64_t size() const;
  std::string text() const;
};

// The arrays of one parameter's state, found to be of this shape and type.
struct State {
  Shape shape;
  int dtype;
  std::vector<Array> arrays;
};

// What a step leaves behind, to be read after a wait.
struct StepReport {
  std::atomic<double> gradient_norm{std::numeric_limits<double>::quiet_NaN()};
};

// Bounds the norm of all gradients of a step together, after they have been rescaled.
struct NormBound {
  double bound;
  std::shared_ptr<StepReport> report;
};

class Batch {
 public:
  // With `lazy`, rows that a row_sparse gradient does not hold are left alone; else they are
  // updated with a gradient of zero. With `multi_precision`, the state of a 16-bit weight begins
  // with a float32 copy of it, which is updated and from which the weight is rounded.
  Batch(const cpu::RuleKernels& rule, bool lazy, bool multi_precision)
      : rule_(rule), lazy_(lazy), multi_precision_(multi_precision) {}

  const cpu::RuleKernels& rule() const { return rule_; }
  std::size_t size() const { return parameters_.size(); }

  // Of the parameter added last: whether it has a master weight, and how many arrays its state is.
  bool has_master() const { return parameters_.back().has_master; }
  int arrays_of_state() const { return rule_.states + (has_master() ? 1 : 0); }

  // Checks a weight with its gradient, dense or row_sparse, and takes hold of both. A state must
  // follow.
  void add(Handle weight, Handle grad);

  // Checks the state of the parameter added last, a master weight first, and takes hold of it.
  // States live from step to step: what is returned can be handed to reuse_state() in the next,
  // which saves checking again, and is false where the state does not fit.
  std::shared_ptr<const State> add_state(const std::vector<Handle>& arrays);
  bool reuse_state(const std::shared_ptr<const State>& state);

  // Refuses arrays that share memory, of which one would be written: the engine would wait for
  // itself.
  void check_memory() const;

  // Hands the update to the engine and returns at once. `scalars` has a row for each parameter, as
  // wide as the rule has scalars. What the engine cannot do surfaces as MXNetError at the next
  // wait, with no array written.
  void push(std::vector<double> scalars, std::optional<NormBound> norm_bound) &&;

 private:
  friend struct Operation;

  struct Parameter {
    Shape shape;
    std::int64_t size;
    int dtype;
    bool has_master;
    // Whether a layer may have left weight or gradient in a layout of oneDNN's.
    bool is_matrix;
    bool weight_in_rows;
    bool grad_in_rows;
    Array weight;
    Array grad;
    std::shared_ptr<const State> state;
  };

  const cpu::RuleKernels& rule_;
  bool lazy_;
  bool multi_precision_;
  std::vector<Parameter> parameters_;
  int device_id_ = 0;

  void restore_layouts() const;
};

// Makes the next wait on any of these arrays raise MXNetError with this message.
void push_failure(const std::vector<Handle>& arrays, const std::string& message);

}  // namespace mxadamax::engine
